"""quantsr: quantize diffusion super-resolution models, compare the methods, ship the result.

The package imports nothing heavy by itself: the functions here pull in torch and diffusers when they are called.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "import_checkpoint", "load"]


def load(path: Any, runtime: str = "auto", device: str | None = None) -> Any:
    """The student in the folder that ``train.py`` wrote: see :meth:`quantsr.deploy.pipeline.Pipeline.load`."""
    from quantsr.deploy.pipeline import Pipeline

    return Pipeline.load(path, runtime, device)


def from_pretrained(name: Any, **options: Any) -> Any:
    """The student of a folder or of a repository on the Hugging Face hub.

    See :meth:`quantsr.deploy.pipeline.Pipeline.from_pretrained`.
    """
    from quantsr.deploy.pipeline import Pipeline

    return Pipeline.from_pretrained(name, **options)


def import_checkpoint(paths: Any, teacher: Any, bits: Any) -> Any:
    """A student that its authors released: see :func:`quantsr.deploy.released.import_checkpoint`."""
    from quantsr.deploy import released

    return released.import_checkpoint(paths, teacher, bits)
