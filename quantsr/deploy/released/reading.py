"""Reading released files, and saying what in them does not fit."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantsr.errors import UserError

Shapes = Mapping[str, tuple[int, ...] | None]
"""Names and shapes of what a file has to hold; None takes any vector."""


def read(path: str | Path) -> Any:
    """What a released file holds. Nothing but tensors and plain containers is unpickled.

    Raises:
        UserError: no such file, or it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: download what PassionSR's or QuantVSR's authors released, see docs")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"{path} is not a readable file of tensors: download it again ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def check(path: str | Path, expected: Shapes, found: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; axes of length 1 do not count.

    Raises:
        UserError: a short table of what is missing, unexpected and of another shape.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    other = [
        f"{name} {tuple(found[name].shape)} instead of {'a vector' if shape is None else shape}"
        for name, shape in expected.items()
        if name in found and not _fits(found[name], shape)
    ]
    rows = [("missing", missing), ("unexpected", unexpected), ("of another shape", other)]
    lines = [f"{len(names)} {what}: {_some(names)}" for what, names in rows if names]
    if lines:
        raise UserError("\n  ".join([f"{path} does not fit the teacher:", *lines]))


def _fits(tensor: Tensor, shape: tuple[int, ...] | None) -> bool:
    if shape is None:
        return tensor.ndim == 1
    return [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
