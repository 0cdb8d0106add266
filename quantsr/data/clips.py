"""Folders of clips: clean ones degraded on the fly, low-quality ones beside their clean versions, or these alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from quantsr.data.clip_degradations import ClipDegradation
from quantsr.data.clip_folders import PARTS, Clip, ClipMatch, divide, list_clips, open_clips
from quantsr.data.files import warn_skipped
from quantsr.data.frames import FramesDataModule, corner, cut, matched_paths, turn
from quantsr.data.pairs import match_named
from quantsr.data.splits import VALIDATION_SEED
from quantsr.errors import UserError


@dataclass(frozen=True)
class Segment:
    """Frames `start` up to `stop` of a clip; `name` is that of the sample."""

    clip: Clip
    start: int
    stop: int
    name: str


class ClipSegments(Dataset):
    """Segments of clips, read from disk when asked for.

    A number beyond the length is a later visit of segment `number % len`. With `random`, everything about a
    visit is drawn from (seed, number): the place of the segment in its clip, which the sample's name tells as
    `name_start`, that of the crop, flips, quarter turns and degradation. Without, the segment is as given, the
    crop is the centre and the degradation is drawn from (seed, number % len).

    Args:
        segments: what to give.
        crop: side of the crop in clean pixels, a multiple of the scale; None takes whole frames, cut at the
            right and the bottom to multiples of the scale.
        degradation: makes the low-quality segment of a clip without one.
        seed: of all draws.
        random: whether visits differ.

    Raises:
        UserError: if there are no segments or the crop does not divide by the scale.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        crop: int | None,
        degradation: ClipDegradation,
        seed: int = 0,
        random: bool = False,
    ):
        if not segments:
            raise UserError("A data set of clips needs at least one segment, and none was given.")
        if crop is not None and (crop < 1 or crop % degradation.scale):
            raise UserError(f"A crop of {crop} pixels does not divide by the scale {degradation.scale}.")
        self.segments, self.crop, self.degradation = list(segments), crop, degradation
        self.seed, self.random = seed, random

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = number % len(self)
        segment = self.segments[index]
        clip, start, stop, name = segment.clip, segment.start, segment.stop, segment.name
        rng = np.random.default_rng((self.seed, number if self.random else index))
        if self.random:
            length = stop - start
            start = int(rng.integers(0, len(clip) - length, endpoint=True))
            stop, name = start + length, f"{clip.name}_{start}"
        gt, lq = (None if version is None else version.read(start, stop) for version in (clip.gt, clip.lq))
        gt, lq = self._cut(gt, lq, rng)
        sample = {"lq": self.degradation(gt, rng) if lq is None else lq, "gt": gt, "name": name}
        return {key: value for key, value in sample.items() if value is not None}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the first sample's `lq` and `gt`, without reading it: whole clips take a while."""
        segment, scale = self.segments[0], self.degradation.scale
        gt, lq = segment.clip.gt, segment.clip.lq
        sides = lq.size if gt is None else [side // scale for side in gt.size]
        sides = [self.crop // scale if self.crop else side for side in sides]
        length = segment.stop - segment.start
        shapes = {"lq": (length, 3, *sides), "gt": (length, 3, *(side * scale for side in sides))}
        return shapes if gt is not None else {"lq": shapes["lq"]}

    def _cut(
        self, gt: Tensor | None, lq: Tensor | None, rng: np.random.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        """The crop of this visit, turned and flipped if random, the same place of both."""
        scale = self.degradation.scale
        # Places are counted in low-quality pixels, so that both crops show the same.
        height, width = lq.shape[-2:] if gt is None else (side // scale for side in gt.shape[-2:])
        grid = lq if gt is None else gt[..., : height * scale : scale, : width * scale : scale]
        size = (height, width) if self.crop is None else (self.crop // scale,) * 2
        top, left = corner(grid, size, rng if self.random else None)
        gt = None if gt is None else cut(gt, (top * scale, left * scale), (size[0] * scale, size[1] * scale))
        lq = None if lq is None else cut(lq, (top, left), size)
        if not self.random:
            return gt, lq
        turns = int(rng.integers(2**32))
        return tuple(x if x is None else turn(x, np.random.default_rng(turns)) for x in (gt, lq))


class ClipsDataModule(FramesDataModule):
    """Calibrate (or train a teacher) on segments of some clips of a folder and validate on others, whole.

    A clip is a subfolder of frames or a video file. Which are for validation: those that match
    `validation_pattern`, if given; else a seeded share. To measure on all clips, give `validation_share=1`:
    nothing is left to calibrate on. Clips that cannot be used are skipped and counted: those for calibration
    are looked at quickly, those for validation frame by frame.

    Args:
        gt: folder of clean clips, see `list_clips`; None where there are none: such clips can calibrate a student
            and be upscaled, and are measured without a reference.
        lq: folder of their low-quality versions, matched by name; None degrades the clean ones on the fly.
        pattern: glob pattern of the names of the clips to use, or several.
        validation_pattern: glob pattern of the names of the validation clips.
        validation_share: share of the clips kept for validation where no pattern is given.
        scale: how many times larger gt is along each side.
        frames: length of the segments to calibrate on; a clip gives as many as fit one after the other.
        validation_frames: validate on no more than so many first frames of a clip; None takes whole clips.
        crop: side of the calibration crops in clean pixels.
        validation_crop: side of the centre crops for validation; None takes whole frames.
        random_crops: draw place, flip and degradation anew at every visit, as training a teacher wants it.
        degradation: makes the low-quality clips; default `ClipDegradation(scale)`.
        batch_size, num_workers, seed: see `FramesDataModule`.

    Raises:
        UserError: if the degradation has another scale, a length is under 1 or neither folder is given.
    """

    def __init__(
        self,
        gt: str | Path | None,
        lq: str | Path | None = None,
        pattern: str | Sequence[str] = "*",
        validation_pattern: str | None = None,
        validation_share: float = 0.2,
        scale: int = 4,
        frames: int = 5,
        validation_frames: int | None = None,
        crop: int = 256,
        validation_crop: int | None = None,
        random_crops: bool = False,
        degradation: ClipDegradation | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.gt, self.lq = (Path(folder) if folder else None for folder in (gt, lq))
        self.pattern = pattern
        self.validation_pattern, self.validation_share = validation_pattern, validation_share
        self.frames, self.validation_frames = frames, validation_frames
        self.crop, self.validation_crop, self.random_crops = crop, validation_crop, random_crops
        self.scale, self.degradation = scale, degradation or ClipDegradation(scale)
        if self.gt is None and self.lq is None:
            raise UserError("No folder of clips is given: give data.gt, data.lq or both.")
        if frames < 1 or (validation_frames is not None and validation_frames < 1):
            raise UserError(f"A clip needs a frame: frames={frames}, validation_frames={validation_frames} is too few.")
        if self.degradation.scale != scale:
            raise UserError(f"The degradation's scale, {self.degradation.scale}, differs from the data's, {scale}.")

    def paths(self) -> tuple[list[Path], list[Path]]:
        calibration, validation = map(matched_paths, self.matches)
        return calibration, validation

    def load_calibration(self) -> Dataset:
        clips = self._open(0, frames=self.frames, side=self.crop, decode_to=0)
        segments = disjoint_segments(clips, self.frames)
        return ClipSegments(segments, self.crop, self.degradation, self.seed, self.random_crops)

    def load_validation(self) -> Dataset:
        limit = self.validation_frames
        clips = self._open(1, frames=1, side=self.validation_crop or self.scale, decode_to=limit)
        segments = [Segment(clip, 0, min(limit or len(clip), len(clip)), clip.name) for clip in clips]
        return ClipSegments(segments, self.validation_crop, self.degradation, VALIDATION_SEED)

    @cached_property
    def matches(self) -> tuple[list[ClipMatch], list[ClipMatch]]:
        """The calibration clips and the validation clips, not opened yet; no clip is in both."""
        if self.lq is None:
            matches = [(name, path, None) for name, path in list_clips(self.gt)]
        elif self.gt is None:
            matches = [(name, None, path) for name, path in list_clips(self.lq)]
        else:
            pairs, unmatched = match_named(list_clips(self.lq), list_clips(self.gt))
            warn_skipped(unmatched)
            self.skipped += unmatched
            matches = [(name, gt, lq) for name, lq, gt in pairs]
            if not matches:
                raise UserError(f"No clip of {self.lq.absolute()} has the name of one in {self.gt.absolute()}.")
        return divide(matches, self.pattern, self.validation_pattern, self.validation_share)

    def _open(self, part: int, **conditions: Any) -> list[Clip]:
        """The usable clips for calibration (part 0) or validation (part 1)."""
        clips, skipped = open_clips(self.matches[part], self.scale, **conditions)
        self.skipped += skipped
        if not clips:
            example = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
            folder = self.lq if self.gt is None else self.gt
            raise UserError(
                f"No clip of {folder.absolute()} is left for {PARTS[part]}, {len(skipped)} were skipped{example}: "
                f"change validation_share ({self.validation_share}) or the patterns, or add clips."
            )
        return clips


def disjoint_segments(clips: Sequence[Clip], frames: int) -> list[Segment]:
    """Every whole segment of a length from the beginning of each clip, named `name_start`.

    The first of all clips come before the second of any: so many segments as there are clips show all of them.
    """
    longest = max(map(len, clips), default=0)
    return [
        Segment(clip, start, start + frames, f"{clip.name}_{start}")
        for start in range(0, longest - frames + 1, frames)
        for clip in clips
        if start + frames <= len(clip)
    ]
