"""Whether a released file fits a teacher."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from quantsr.teachers.weight_files import Differences

Shapes = Mapping[str, tuple[int, ...] | None]
"""Names and shapes of what a file has to hold; None takes any vector."""


def check(path: Path, expected: Shapes, found: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; axes of length 1 do not count.

    Raises:
        UserError: a short table of what is missing, unexpected and of another shape.
    """
    Differences(
        missing=[name for name in expected if name not in found],
        unexpected=[name for name in found if name not in expected],
        shapes=[
            f"{name} {tuple(found[name].shape)} instead of {'a vector' if shape is None else shape}"
            for name, shape in expected.items()
            if name in found and not _fits(found[name], shape)
        ],
    ).refuse(path, "the teacher")


def _fits(tensor: Tensor, shape: tuple[int, ...] | None) -> bool:
    if shape is None:
        return tensor.ndim == 1
    return [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
