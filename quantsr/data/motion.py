"""Clips made from still photographs by a moving camera: video without a download, with its motion known."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from quantsr.data.camera import camera_path, render, true_flow
from quantsr.data.clip_degradations import ClipDegradation
from quantsr.data.clip_folders import PARTS, ClipMatch, divide, list_clips, open_clips
from quantsr.data.clips import ClipSegments, disjoint_segments
from quantsr.data.degradations import to_float
from quantsr.data.files import NamedImage, NamedPath, crop_for, list_named, read_images
from quantsr.data.frames import FramesDataModule, matched_paths, turn
from quantsr.data.photos import packaged_photos
from quantsr.data.splits import VALIDATION_SEED
from quantsr.errors import UserError


class MovingCrops(Dataset):
    """Photographs, kept decoded in memory, each given as clips that a moving camera takes of it.

    A number beyond the length is a later visit of sample `number % len`. With `random`, everything about a
    visit is drawn from (seed, number): flips and quarter turns of the photo, camera path and degradation.
    Without, path and degradation are drawn from (seed, number % len): every visit gives the same sample.

    Args:
        photos: (name, (3, H, W) uint8) of each photograph.
        frames: length of the clips.
        crop: side of the frames in clean pixels, a multiple of the scale.
        degradation: makes the low-quality clip.
        clips_per_photo: clips of one photograph, `name_0` and so on.
        seed: of all draws.
        random: whether visits differ.
        flow: whether samples have the true `flow`, (frames - 1, 2, crop, crop): forward, in clean pixels.

    Raises:
        UserError: if there are no photos, the crop does not divide by the scale, a photo is smaller than the
            crop, or a count is under 1.
    """

    def __init__(
        self,
        photos: Sequence[NamedImage],
        frames: int,
        crop: int,
        degradation: ClipDegradation,
        clips_per_photo: int = 1,
        seed: int = 0,
        random: bool = False,
        flow: bool = False,
    ):
        if not photos:
            raise UserError("A data set of clips needs at least one photograph, and none was given.")
        if frames < 1 or clips_per_photo < 1:
            raise UserError(f"A clip needs a frame and a photo a clip: {frames} and {clips_per_photo} are too few.")
        if crop < 1 or crop % degradation.scale:
            raise UserError(f"A crop of {crop} pixels does not divide by the scale {degradation.scale}.")
        for name, photo in photos:
            if min(photo.shape[-2:]) < crop:
                fits = crop_for(min(photo.shape[-2:]))
                raise UserError(f"Photograph {name} is smaller than the crop of {crop} pixels{fits}.")
        self.photos, self.frames, self.crop, self.degradation = list(photos), frames, crop, degradation
        self.clips_per_photo, self.seed, self.random, self.flow = clips_per_photo, seed, random, flow

    def __len__(self) -> int:
        return len(self.photos) * self.clips_per_photo

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number % len(self)
        photo_number, clip = divmod(index, self.clips_per_photo)
        name, photo = self.photos[photo_number]
        rng = np.random.default_rng((self.seed, number if self.random else index))
        size = (self.crop, self.crop)
        if self.random:
            photo = turn(photo, rng)
        path = camera_path(photo.shape[-2:], size, self.frames, rng)
        gt = render(to_float(photo), path, size)
        sample = {"lq": self.degradation(gt, rng), "gt": gt, "name": f"{name}_{clip}"}
        return sample | ({"flow": true_flow(path, size)} if self.flow else {})


class MotionDataModule(FramesDataModule):
    """Calibrate (or train a teacher) on clips of some photographs and validate on clips of others.

    Which photographs are for validation: those that match `validation_pattern`, if given; else a seeded share
    of them. Validation samples have the true `flow`.

    Args:
        root: folder of clean photographs (not searched below); None takes the packaged photographs.
        pattern: glob pattern of the stems of the photographs to use, such as `train_*`.
        validation_pattern: glob pattern of the stems of the validation photographs, such as `test_*`.
        validation_share: share of the photographs kept for validation where no pattern is given.
        frames: length of the clips to calibrate on.
        validation_frames: length of the clips to validate on.
        crop: side of the frames in clean pixels.
        validation_crop: side of the validation frames in clean pixels; None takes `crop`.
        clips_per_photo: clips of one photograph, each with its own camera path and degradation.
        real: folder of real clean clips to calibrate on too, each a subfolder of frames or a video file; None for
            none. With `random_crops` they are drawn from in space and time, as often as crops fit into them beside
            and after each other; without, a clip gives its centre, one segment after the other.
        real_pattern: glob pattern of the names of the real clips to use.
        random_crops: draw path, flip and degradation anew at every visit, as training a teacher wants it.
        degradation: makes the low-quality clips; default `ClipDegradation()`.
        batch_size, num_workers, seed: see `FramesDataModule`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        pattern: str = "*",
        validation_pattern: str | None = None,
        validation_share: float = 1 / 3,
        frames: int = 5,
        validation_frames: int = 10,
        crop: int = 128,
        validation_crop: int | None = None,
        clips_per_photo: int = 3,
        real: str | Path | None = None,
        real_pattern: str = "*",
        random_crops: bool = False,
        degradation: ClipDegradation | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.root, self.pattern = Path(root) if root else None, pattern
        self.validation_pattern, self.validation_share = validation_pattern, validation_share
        self.frames, self.validation_frames = frames, validation_frames
        self.crop, self.validation_crop = crop, validation_crop or crop
        self.clips_per_photo, self.random_crops = clips_per_photo, random_crops
        self.real, self.real_pattern = Path(real) if real else None, real_pattern
        self.degradation = degradation or ClipDegradation()

    def paths(self) -> tuple[list[Path], list[Path]]:
        photos = ([], []) if self.root is None else [[path for _, path in self._named(part)] for part in (0, 1)]
        return [*photos[0], *(matched_paths(self._real_clips()) if self.real else [])], photos[1]

    def load_calibration(self) -> Dataset:
        photos = self._photos(0, self.crop)
        moving = MovingCrops(
            photos, self.frames, self.crop, self.degradation, self.clips_per_photo, self.seed, self.random_crops
        )
        return Joined([moving, self._real()]) if self.real else moving

    def load_validation(self) -> Dataset:
        photos, crop = self._photos(1, self.validation_crop), self.validation_crop
        return MovingCrops(
            photos, self.validation_frames, crop, self.degradation, self.clips_per_photo, VALIDATION_SEED, flow=True
        )

    def _photos(self, part: int, minimum: int) -> list[NamedImage]:
        """The photographs for calibration (part 0) or validation (part 1)."""
        chosen = self._named(part)
        if not chosen:
            raise UserError(
                f"No photograph of {self.root.absolute() if self.root else 'the packaged ones'} is left for "
                f"{PARTS[part]}: change validation_share ({self.validation_share}) or the patterns, or add photographs."
            )
        if self.root is None:
            return chosen
        photos, skipped = read_images([path for _, path in chosen], minimum)
        self.skipped += skipped
        return photos

    def _named(self, part: int) -> list[NamedImage] | list[NamedPath]:
        """The same, those of a folder not read yet."""
        named = packaged_photos() if self.root is None else list_named(self.root)
        return divide(named, self.pattern, self.validation_pattern, self.validation_share)[part]

    def _real_clips(self) -> list[ClipMatch]:
        found = [(name, path, None) for name, path in list_clips(self.real)]
        return [match for match in found if fnmatchcase(match[0], self.real_pattern)]

    def _real(self) -> Dataset:
        """Segments of the real clips."""
        clips, skipped = open_clips(self._real_clips(), self.degradation.scale, self.frames, self.crop, decode_to=0)
        self.skipped += skipped
        if not clips:
            raise UserError(
                f"No clip of {self.real.absolute()} matches real_pattern={self.real_pattern} and has {self.frames} "
                f"frames of {self.crop} pixels or more."
            )
        segments = disjoint_segments(clips, self.frames)
        if self.random_crops:
            # As often as there are crops beside each other: a clip has more to show than one place of it.
            segments = [segment for segment in segments for _ in range(_places(segment.clip.gt.size, self.crop))]
        return ClipSegments(segments, self.crop, self.degradation, self.seed, self.random_crops)


class Joined(Dataset):
    """Data sets one after the other; a number beyond the length is a later visit, for the parts too."""

    def __init__(self, parts: Sequence[Dataset]):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        visit, index = divmod(number, len(self))
        for part in self.parts:
            if index < len(part):
                return part[visit * len(part) + index]
            index -= len(part)
        raise IndexError(number)


def _places(size: tuple[int, int], crop: int) -> int:
    """How many crops fit beside each other into (height, width)."""
    return (size[0] // crop) * (size[1] // crop)
