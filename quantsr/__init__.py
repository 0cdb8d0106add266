"""quantsr: quantize diffusion super-resolution models, compare the methods, ship the result.

The package imports nothing heavy by itself: ``quantsr.load`` and ``quantsr.import_checkpoint`` pull in torch and
diffusers when they are called.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "import_checkpoint", "load"]


def load(path: Any, device: str = "cpu") -> Any:
    """Load the artefact folder that ``train.py`` wrote: see :func:`quantsr.deploy.artefact.load_student`."""
    from quantsr.deploy.artefact import load_student

    return load_student(path).to(device)


def import_checkpoint(paths: Any, teacher: Any, bits: Any) -> Any:
    """A student that its authors released: see :func:`quantsr.deploy.released.import_checkpoint`."""
    from quantsr.deploy import released

    return released.import_checkpoint(paths, teacher, bits)
