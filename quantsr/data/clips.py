"""Folders of clips: clean ones degraded on the fly, or low-quality ones beside their clean versions."""

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
from quantsr.data.frames import FramesDataModule, corner, cut, turn
from quantsr.data.pairs import match_paths
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
            start = int(rng.integers(0, len(clip.gt) - length, endpoint=True))
            stop, name = start + length, f"{clip.name}_{start}"
        gt = clip.gt.read(start, stop)
        lq = None if clip.lq is None else clip.lq.read(start, stop)
        gt, lq = self._cut(gt, lq, rng)
        return {"lq": self.degradation(gt, rng) if lq is None else lq, "gt": gt, "name": name}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the first sample's `lq` and `gt`, without reading it: whole clips take a while."""
        segment, scale = self.segments[0], self.degradation.scale
        sides = [(self.crop or side) // scale for side in segment.clip.gt.size]
        length = segment.stop - segment.start
        return {"lq": (length, 3, *sides), "gt": (length, 3, *(side * scale for side in sides))}

    def _cut(self, gt: Tensor, lq: Tensor | None, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """The crop of this visit, turned and flipped if random, the same place of both."""
        scale = self.degradation.scale
        height, width = (side // scale for side in gt.shape[-2:])
        # Places are counted in low-quality pixels, so that both crops show the same.
        grid = gt[..., : height * scale : scale, : width * scale : scale]
        size = (height, width) if self.crop is None else (self.crop // scale,) * 2
        top, left = corner(grid, size, rng if self.random else None)
        gt = cut(gt, (top * scale, left * scale), (size[0] * scale, size[1] * scale))
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
        gt: folder of clean clips.
        lq: folder of their low-quality versions, matched by name; None degrades the clean ones on the fly.
        pattern: glob pattern of the names of the clips to use.
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
        UserError: if the degradation has another scale, or a length is under 1.
    """

    def __init__(
        self,
        gt: str | Path,
        lq: str | Path | None = None,
        pattern: str = "*",
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
        self.gt, self.lq, self.pattern = Path(gt), Path(lq) if lq else None, pattern
        self.validation_pattern, self.validation_share = validation_pattern, validation_share
        self.frames, self.validation_frames = frames, validation_frames
        self.crop, self.validation_crop, self.random_crops = crop, validation_crop, random_crops
        self.scale, self.degradation = scale, degradation or ClipDegradation(scale)
        if frames < 1 or (validation_frames is not None and validation_frames < 1):
            raise UserError(f"A clip needs a frame: frames={frames}, validation_frames={validation_frames} is too few.")
        if self.degradation.scale != scale:
            raise UserError(f"The degradation's scale, {self.degradation.scale}, differs from the data's, {scale}.")

    def load_calibration(self) -> Dataset:
        clips = self._open(0, frames=self.frames, side=self.crop, decode_to=0)
        segments = disjoint_segments(clips, self.frames)
        return ClipSegments(segments, self.crop, self.degradation, self.seed, self.random_crops)

    def load_validation(self) -> Dataset:
        limit = self.validation_frames
        clips = self._open(1, frames=1, side=self.validation_crop or self.scale, decode_to=limit)
        segments = [Segment(clip, 0, min(limit or len(clip.gt), len(clip.gt)), clip.name) for clip in clips]
        return ClipSegments(segments, self.validation_crop, self.degradation, self.seed)

    @cached_property
    def matches(self) -> tuple[list[ClipMatch], list[ClipMatch]]:
        """The calibration clips and the validation clips, not opened yet; no clip is in both."""
        paths = list_clips(self.gt)
        if self.lq is None:
            matches = [(path.stem, path, None) for path in paths]
        else:
            matches, unmatched = match_paths(list_clips(self.lq), paths)
            warn_skipped(unmatched)
            self.skipped += unmatched
            matches = [(name, gt, lq) for name, lq, gt in matches]
            if not matches:
                raise UserError(f"No clip of {self.lq.absolute()} has the name of one in {self.gt.absolute()}.")
        return divide(matches, self.pattern, self.validation_pattern, self.validation_share, self.seed)

    def _open(self, part: int, **conditions: Any) -> list[Clip]:
        """The usable clips for calibration (part 0) or validation (part 1)."""
        clips, skipped = open_clips(self.matches[part], self.scale, **conditions)
        self.skipped += skipped
        if not clips:
            example = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
            raise UserError(
                f"No clip of {self.gt.absolute()} is left for {PARTS[part]}, {len(skipped)} were skipped{example}: "
                f"change validation_share ({self.validation_share}) or the patterns, or add clips."
            )
        return clips


def disjoint_segments(clips: Sequence[Clip], frames: int) -> list[Segment]:
    """Every whole segment of a length from the beginning of each clip, named `name_start`.

    The first of all clips come before the second of any: so many segments as there are clips show all of them.
    """
    longest = max((len(clip.gt) for clip in clips), default=0)
    return [
        Segment(clip, start, start + frames, f"{clip.name}_{start}")
        for start in range(0, longest - frames + 1, frames)
        for clip in clips
        if start + frames <= len(clip.gt)
    ]


def benchmark(root: str | Path, **options: Any) -> ClipsDataModule:
    """A benchmark in the layout GT/<clip>/<frame>.png and LQ/<clip>/<frame>.png; all clips are for validation.

    Args:
        root: holds the folders ``GT`` and ``LQ``.
        **options: of :class:`ClipsDataModule`.
    """
    return ClipsDataModule(Path(root) / "GT", Path(root) / "LQ", **{"validation_share": 1, **options})
