"""quantsr: quantize diffusion super-resolution models, compare the methods, ship the result.

The package imports nothing heavy by itself: the functions here pull in torch and diffusers when they are called.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "from_pretrained", "import_checkpoint", "load"]


def load(path: Any, runtime: str = "auto", device: str | None = None) -> Any:
    """The student in the folder that ``train.py`` wrote: ``pipe = quantsr.load("runs/DATE/RUN"); pipe("photo.jpg")``.

    Args:
        path: of the run folder, or of an artefact folder.
        runtime: ``openvino``, ``triton`` or ``torch``, or ``auto`` for the fastest that is available and ready.
        device: ``cpu``, ``cuda``, ``cuda:1``; None takes a GPU if there is one (for ``openvino`` the CPU).

    Returns:
        A :class:`quantsr.deploy.pipeline.Pipeline`; its ``__call__`` says what it takes.

    Raises:
        UserError: no artefact there, a damaged one, or a runtime that cannot be used.
    """
    from quantsr.deploy.pipeline import Pipeline

    return Pipeline.load(path, runtime, device)


def from_pretrained(name: Any, **options: Any) -> Any:
    """The student of a folder or of a repository on the Hugging Face hub: ``quantsr.from_pretrained("user/name")``.

    Args:
        name: a folder, or ``user/name``.
        options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ``runtime``, ``device``, see
            :meth:`quantsr.deploy.pipeline.Pipeline.from_pretrained`.

    Returns:
        A :class:`quantsr.deploy.pipeline.Pipeline`.

    Raises:
        UserError: there is no such folder or repository, or what it holds cannot be loaded.
    """
    from quantsr.deploy.pipeline import Pipeline

    return Pipeline.from_pretrained(name, **options)


def import_checkpoint(paths: Any, teacher: Any, bits: Any) -> Any:
    """A student that its authors released, see :func:`quantsr.deploy.released.import_checkpoint`.

    Args:
        paths: its files.
        teacher: the model that they quantized, or the path of its weights.
        bits: such as ``"w6a6"``.

    Returns:
        The student, a :class:`quantsr.teachers.base.Teacher` of quantized layers.

    Raises:
        UserError: a file that is missing, damaged, or does not fit the teacher.
        ValueError: widths that cannot be.
    """
    from quantsr.deploy import released

    return released.import_checkpoint(paths, teacher, bits)
