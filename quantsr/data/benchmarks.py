"""Benchmark data sets by name, from a folder as people have it; all of their images or clips are measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantsr.data.clips import ClipsDataModule
from quantsr.data.degradations import Degradation
from quantsr.data.frames import FramesDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.layouts import DATA_SETS, find
from quantsr.data.pairs import PairsDataModule


def image_benchmark(
    name: str,
    root: str | Path,
    scale: int = 4,
    crop: int = 192,
    validation_share: float = 1,
    batch_size: int = 4,
    num_workers: int = 0,
    seed: int = 0,
) -> FramesDataModule:
    """Pairs; or, of a data set found without low-quality images, the clean ones, degraded on the fly.

    Args:
        name: see :data:`quantsr.data.layouts.DATA_SETS`.
        root: holds the folders of one of its layouts.
        scale: how many times larger the clean image is along each side.
        crop: side of calibration crops in clean pixels.
        validation_share: of the images; 1 leaves none to calibrate on.
        batch_size, num_workers, seed: see :class:`FramesDataModule`.

    Raises:
        UserError: see :func:`quantsr.data.layouts.find`.
    """
    found = find(name, root)
    options = {"crop": crop, "validation_share": validation_share, "batch_size": batch_size}
    options |= {"num_workers": num_workers, "seed": seed}
    if found.lq is not None:
        return PairsDataModule(found.lq, found.gt, scale, **options)
    return ImagesDataModule(found.gt, found.layout.pattern, degradation=Degradation(scale), **options)


def clip_benchmark(
    name: str, root: str | Path, pattern: str | Sequence[str] | None = None, **options: Any
) -> ClipsDataModule:
    """Clips, with ground truth or without.

    Args:
        name: see :data:`quantsr.data.layouts.DATA_SETS`.
        root: holds the folders of one of its layouts.
        pattern: glob pattern of the names of the clips to use, or several; None takes those of the data set.
        **options: of :class:`ClipsDataModule`.

    Raises:
        UserError: see :func:`quantsr.data.layouts.find`.
    """
    found = find(name, root)
    pattern = pattern or DATA_SETS[name].names or "*"
    return ClipsDataModule(found.gt, found.lq, pattern, **{"validation_share": 1, **options})
