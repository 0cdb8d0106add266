"""Complexities to allocate ranks by."""

import numpy as np

from quantsr.methods.quantvsr.complexity import (
    Samples,
)


def layers(count: int = 24, samples: int = 60, still: bool = False) -> Samples:
    """Layers of rising complexity."""
    rng = np.random.default_rng(0)
    levels = np.linspace(-2, 1, count)[:, None] + rng.normal(0, 0.15, (count, samples))
    motion = 0 if still else 10 ** (2 * levels)
    pairs = np.stack([10**levels, motion + 0 * levels], -1)
    return {f"layer.{i}": [(*pair,) for pair in row] for i, row in enumerate(pairs.tolist())}
