"""Division of samples into calibration and validation, the same in runs of every seed."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from quantsr.errors import UserError

T = TypeVar("T")
VALIDATION_SEED = 0
"""Of which samples are measured and how they are degraded: runs of all seeds, and eval.py, measure on the same ones."""


def split(items: Sequence[T], share: float, seed: int = VALIDATION_SEED) -> tuple[list[T], list[T]]:
    """Divide items into (calibration, validation), each in the order given.

    Args:
        items: what to divide.
        share: part of the items for validation, in [0, 1]. Strictly between, two items or more give to both
            parts.
        seed: of the choice.

    Raises:
        UserError: if the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"The validation share must be between 0 and 1, not {share}.")
    count = round(share * len(items))
    if 0 < share < 1 and len(items) > 1:
        count = min(max(count, 1), len(items) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    calibration = [item for i, item in enumerate(items) if i not in chosen]
    validation = [item for i, item in enumerate(items) if i in chosen]
    return calibration, validation
