"""Runtime ``triton``: integer products on an NVIDIA GPU, see :mod:`quantsr.quant.integer`."""

from importlib.util import find_spec
from pathlib import Path

import torch

from quantsr.deploy.artefact import load_student
from quantsr.quant.integer import integers
from quantsr.teachers.base import Teacher


def available(folder: Path, device: str) -> str | None:
    """Why ``device`` or the installation does not allow it; None if they do."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return f"it runs on an NVIDIA GPU, not on {device}."
    if find_spec("triton") is None:
        return "the package triton is missing, which PyTorch for CUDA brings on Linux."
    return None


def load(folder: Path, device: str) -> Teacher:
    """The student on integer kernels, but for what :func:`quantsr.quant.integer.integers` says it simulates."""
    student = load_student(folder).to(device)
    integers(student)
    return student
