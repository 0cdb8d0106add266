"""quantsr: quantize diffusion super-resolution models, compare the methods, ship the result.

The package imports nothing heavy by itself: ``quantsr.load`` pulls in torch and diffusers when it is called.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Any, device: str = "cpu") -> Any:
    """Load the artefact folder that ``train.py`` wrote: see :func:`quantsr.deploy.artefact.load_student`."""
    from quantsr.deploy.artefact import load_student

    return load_student(path).to(device)
