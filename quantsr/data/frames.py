"""Data sets of single frames and the data module that feeds them, or clips, to training and validation.

A sample is a dict: `lq` (3, h, w) and `gt` (3, scale * h, scale * w), float RGB in [0, 1], and `name`. That of
a clip has `lq` (t, 3, h, w) and `gt` (t, 3, scale * h, scale * w). Where there is no ground truth there is no `gt`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from quantsr.data.degradations import Degradation, to_float
from quantsr.data.files import NamedImage, Skipped
from quantsr.data.sampling import StepBatchSampler
from quantsr.errors import UserError

LATENT_MULTIPLE = 8
"""Whole images are cut so that a low-quality side divides by this: image autoencoders halve a side thrice."""


class DegradedCrops(Dataset):
    """Clean images, kept decoded in memory, each given as a crop with a degraded version of it.

    A number beyond the length is a later visit of sample `number % len`. With `random`, everything about a
    visit is drawn from (seed, number): crop position, flips, quarter turns and degradation. Without, the crop
    is the centre, as it is, and the degradation is drawn from (seed, number % len): every visit gives the
    same sample.

    Args:
        images: (name, (3, H, W) uint8) of each image.
        crop: side of the crop in clean pixels, a multiple of the scale; None takes the whole image, its sides
            cut about the centre to multiples of `LATENT_MULTIPLE * scale` (32 pixels for a scale of 4).
        degradation: makes the low-quality image.
        seed: of all draws.
        random: whether visits differ.

    Raises:
        UserError: if there are no images, the crop does not divide by the scale or an image is smaller than
            the crop.
    """

    def __init__(
        self,
        images: Sequence[NamedImage],
        crop: int | None,
        degradation: Degradation,
        seed: int = 0,
        random: bool = False,
    ):
        if not images:
            raise UserError("A data set needs at least one image, and none was given.")
        if crop is not None and (crop < 1 or crop % degradation.scale):
            raise UserError(f"A crop of {crop} pixels does not divide by the scale {degradation.scale}.")
        smallest = crop or LATENT_MULTIPLE * degradation.scale
        for name, image in images:
            if min(image.shape[-2:]) < smallest:
                raise UserError(f"Image {name} is smaller than the crop of {smallest} pixels.")
        self.images, self.crop, self.degradation = list(images), crop, degradation
        self.seed, self.random = seed, random

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number % len(self)
        name, image = self.images[index]
        rng = np.random.default_rng((self.seed, number if self.random else index))
        size = self._size(image)
        gt = cut(image, corner(image, size, rng if self.random else None), size)
        gt = to_float(turn(gt, rng) if self.random else gt)
        return {"lq": self.degradation(gt, rng), "gt": gt, "name": name}

    def _size(self, image: Tensor) -> tuple[int, int]:
        if self.crop is not None:
            return self.crop, self.crop
        multiple = LATENT_MULTIPLE * self.degradation.scale
        height, width = image.shape[-2:]
        return height - height % multiple, width - width % multiple


def corner(image: Tensor, size: tuple[int, int], rng: np.random.Generator | None = None) -> tuple[int, int]:
    """(top, left) of a (height, width) crop of (c, H, W): anywhere with a generator, else in the centre."""
    spare = [whole - part for whole, part in zip(image.shape[-2:], size, strict=True)]
    top, left = rng.integers(0, spare, endpoint=True).tolist() if rng else (side // 2 for side in spare)
    return top, left


def cut(image: Tensor, corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The (height, width) crop of (c, H, W) with its top left pixel at `corner`."""
    (top, left), (height, width) = corner, size
    return image[..., top : top + height, left : left + width]


def turn(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One of the eight flips and quarter turns of (c, h, w), evenly."""
    image = image.rot90(int(rng.integers(4)), (-2, -1))
    return image.flip(-1) if rng.integers(2) else image


class FramesDataModule(LightningDataModule, ABC):
    """Base of the data modules of images and clips: a subclass says what the two data sets are.

    Attributes:
        frames: length of the segments for training and calibration; 1 for images.
        steps: training steps of the whole run; set before fitting.
        start_step: the step at which fitting begins; set before resuming.
        first_batches: (steps, samples a step) of stages at the start that have a batch size of their own.
        pairs: what to train on instead of the calibration samples; set before fitting.
        skipped: (file name, reason) of every file that could not be used.

    Args:
        batch_size: samples per training step over all devices together.
        num_workers: processes that prepare samples; with 0 the training process does.
        seed: of the order and every random draw of training; what is validated on is the same for all.
    """

    frames: int = 1

    def __init__(self, batch_size: int = 4, num_workers: int = 0, seed: int = 0):
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.steps: int | None = None
        self.start_step = 0
        self.first_batches: list[tuple[int, int]] = []
        self.skipped: list[Skipped] = []
        self._sets: dict[str, Dataset] = {}
        self.pairs: Dataset | None = None

    @abstractmethod
    def load_calibration(self) -> Dataset:
        """Read the samples that training and calibration see; called once."""

    @abstractmethod
    def load_validation(self) -> Dataset:
        """Read the samples that results are measured on, none of them in calibration; called once."""

    def paths(self) -> tuple[list[Path], list[Path]]:
        """The user's files or folders of frames that calibration and validation samples are made of; none of ours."""
        return [], []

    def calibration(self) -> Dataset:
        """The samples that training and calibration see."""
        if "calibration" not in self._sets:
            self._sets["calibration"] = self.load_calibration()
        return self._sets["calibration"]

    def validation(self) -> Dataset:
        """The samples that results are measured on."""
        if "validation" not in self._sets:
            self._sets["validation"] = self.load_validation()
        return self._sets["validation"]

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs: both data sets for fitting, only validation for the other stages."""
        if stage in (None, "fit"):
            self.calibration()
        self.validation()

    def train_dataloader(self) -> DataLoader:
        """`steps - start_step` batches of this device's share of the batch size.

        The trainer must leave the sampler alone (`use_distributed_sampler=False`): it already divides the
        batch.
        """
        if self.steps is None:
            raise RuntimeError("set the data module's steps before fitting")
        data = self.calibration() if self.pairs is None else self.pairs
        sampler = StepBatchSampler(
            len(data),
            self.batch_size,
            self.steps,
            self.seed,
            self.start_step,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            first_batches=self.first_batches,
        )
        return DataLoader(data, batch_sampler=sampler, num_workers=self.num_workers)

    def summary(self) -> str:
        """One line for the log: how many samples of which size, and how many files were left out."""
        parts = [f"{name} {len(data)} samples of {_sizes(data)}" for name, data in self._sets.items()]
        if self.skipped:
            parts.append(f"{len(self.skipped)} files skipped")
        return f"{type(self).__name__}: {', '.join(parts) or 'nothing read yet'}"


def matched_paths(matches: Iterable[tuple[str, *tuple[Path | None, ...]]]) -> list[Path]:
    """The paths of (name, path or None, path or None) of matched files."""
    return [path for _, *paths in matches for path in paths if path is not None]


def sample_shapes(data: Dataset) -> dict[str, tuple[int, ...]]:
    """Shapes of the first sample's `lq` and, where there is ground truth, `gt`.

    A data set whose samples are long in the making has a method `shapes` that tells them.
    """
    if hasattr(data, "shapes"):
        return data.shapes()
    return {key: tuple(value.shape) for key, value in data[0].items() if key in ("lq", "gt")}


def _sizes(data: Dataset) -> str:
    """`48x48 -> 192x192`, width first, of the first sample; `5x 48x48 -> 192x192` of a clip of five frames."""
    shapes = sample_shapes(data)
    sizes = [f"{shapes[key][-1]}x{shapes[key][-2]}" for key in ("lq", "gt") if key in shapes]
    length = f"{shapes['lq'][0]}x " if len(shapes["lq"]) == 4 else ""
    return length + (" -> ".join(sizes) if "gt" in shapes else f"{sizes[0]}, no ground truth")
