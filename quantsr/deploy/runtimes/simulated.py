"""Runtime ``torch``: simulated quantization, codes rounded as integers would be and multiplied in float. Anywhere."""

from pathlib import Path

import torch

from quantsr.deploy.artefact import load_student
from quantsr.teachers.base import Teacher


def available(folder: Path, device: str) -> str | None:
    """Why ``device`` cannot be used; None if it can."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return f"PyTorch sees no GPU for device={device}: install its build for CUDA, or give device=cpu."
    return None


def load(folder: Path, device: str) -> Teacher:
    """The student, see :func:`quantsr.deploy.artefact.load_student`."""
    return load_student(folder).to(device)
