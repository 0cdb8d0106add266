"""Two folders of the same scenes: real low-quality images and their clean versions, as in RealSR.

Or the low-quality ones alone, where there is no clean version of what a camera took.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from quantsr.data.degradations import to_float
from quantsr.data.files import (
    NamedPath,
    Skipped,
    Unusable,
    check_ratio,
    check_side,
    list_images,
    list_named,
    named_once,
    natural_key,
    read_usable,
    warn_skipped,
)
from quantsr.data.frames import FramesDataModule, corner, cut, matched_paths
from quantsr.data.splits import split
from quantsr.errors import UserError

ROLE_SUFFIX = re.compile(r"(_LR\d*|_HR|_LQ|_GT|x\d)$", re.IGNORECASE)
Match = tuple[str, Path, Path]
Scene = tuple[str, Path, Path | None]
Pair = tuple[str, Tensor, Tensor | None]


class AlignedPairs(Dataset):
    """Pairs kept decoded in memory, whole or as crops that show the same place.

    Args:
        pairs: (name, lq (3, h, w) uint8, gt (3, scale * h, scale * w) uint8 or None) of each scene; without gt
            a sample has none either.
        scale: how many times larger gt is along each side.
        crop: side of the crop in clean pixels, a multiple of the scale, its place drawn from (seed, number),
            so that a later visit `number % len` of a pair sees another place; None takes whole images.
        seed: of the places.

    Raises:
        UserError: if the crop does not divide by the scale.
    """

    def __init__(self, pairs: Sequence[Pair], scale: int, crop: int | None = None, seed: int = 0):
        if crop is not None and (crop < 1 or crop % scale):
            raise UserError(f"A crop of {crop} pixels does not divide by the scale {scale}.")
        self.pairs, self.scale, self.crop, self.seed = list(pairs), scale, crop, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        name, lq, gt = self.pairs[number % len(self)]
        if self.crop is not None:
            side = self.crop // self.scale
            top, left = corner(lq, (side, side), np.random.default_rng((self.seed, number)))
            lq = cut(lq, (top, left), (side, side))
            if gt is not None:
                gt = cut(gt, (top * self.scale, left * self.scale), (self.crop, self.crop))
        return {"lq": to_float(lq), **({} if gt is None else {"gt": to_float(gt)}), "name": name}


class PairsDataModule(FramesDataModule):
    """Calibrate on crops of some pairs and validate on others, whole.

    To measure on all pairs, give `validation_share=1`: nothing is left to calibrate on.

    Args:
        lq: folder of low-quality images.
        gt: folder of clean images, matched as in `match_folders`; None where there are none: such data can
            calibrate a student and be upscaled, and is measured without a reference.
        scale: how many times larger gt is along each side; pairs of another ratio are skipped and counted.
        validation_share: seeded share of the pairs kept for validation.
        crop: side of the calibration crops in clean pixels.
        batch_size, num_workers, seed: see `FramesDataModule`.
    """

    def __init__(
        self,
        lq: str | Path,
        gt: str | Path | None,
        scale: int = 4,
        validation_share: float = 0.2,
        crop: int = 192,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ):
        super().__init__(batch_size, num_workers, seed)
        self.lq, self.gt, self.scale = Path(lq), Path(gt) if gt else None, scale
        self.validation_share, self.crop = validation_share, crop

    @cached_property
    def matches(self) -> tuple[list[Scene], list[Scene]]:
        """The calibration pairs and the validation pairs, not read yet."""
        if self.gt is None:
            return split([(*named, None) for named in list_named(self.lq)], self.validation_share)
        matches, unmatched = match_paths(list_images(self.lq), list_images(self.gt))
        warn_skipped(unmatched)
        self.skipped += unmatched
        if not matches:
            raise UserError(f"No image of {self.lq.absolute()} has the name of one in {self.gt.absolute()}.")
        return split(matches, self.validation_share)

    def paths(self) -> tuple[list[Path], list[Path]]:
        calibration, validation = map(matched_paths, self.matches)
        return calibration, validation

    def load_calibration(self) -> Dataset:
        return AlignedPairs(self._read(self.matches[0], "calibration", self.crop), self.scale, self.crop, self.seed)

    def load_validation(self) -> Dataset:
        return AlignedPairs(self._read(self.matches[1], "validation", minimum=1), self.scale)

    def _read(self, matches: list[Scene], purpose: str, minimum: int) -> list[Pair]:
        pairs, skipped = [], []
        for name, lq_path, gt_path in matches:
            try:
                pairs.append((name, *read_pair(lq_path, gt_path, self.scale, minimum)))
            except Unusable as reason:
                skipped.append((name, str(reason)))
        warn_skipped(skipped)
        self.skipped += skipped
        if not pairs:
            what = f"No image of {self.lq.absolute()}"
            if self.gt is not None:
                what = f"No pair of {self.lq.absolute()} and {self.gt.absolute()}"
            example = f" ({skipped[0][0]}: {skipped[0][1]})" if skipped else ""
            raise UserError(
                f"{what} is left for {purpose}: "
                f"{len(skipped)} were skipped{example}, and validation_share is {self.validation_share}."
            )
        return pairs


def read_pair(lq_path: Path, gt_path: Path | None, scale: int, minimum: int) -> tuple[Tensor, Tensor | None]:
    """Read both images of a pair.

    Raises:
        Unusable: if one is broken, gt has (or would have) a side under `minimum` pixels or is not `scale` times
            the size of lq.
    """
    lq = read_usable(lq_path)
    if gt_path is None:
        check_side(lq.shape[-2:], -(-minimum // scale), scale)
        return lq, None
    gt = read_usable(gt_path, minimum)
    check_ratio(lq.shape[-2:], gt.shape[-2:], scale)
    return lq, gt


def match_folders(a: str | Path, b: str | Path) -> list[Match]:
    """Match the images of two folders by stem.

    Equal stems match, and then stems that differ only in their ending: `x_LR4`, `x_HR`, `x_LQ`, `x_GT`, `xx4`
    (`ROLE_SUFFIX`).

    Returns:
        (common stem, path in a, path in b) in natural order. What has no partner is named in the log.

    Raises:
        UserError: if a folder is missing or empty, nothing matches, or two images of a folder could be meant
            by one name.
    """
    matches, unmatched = match_paths(list_images(a), list_images(b))
    warn_skipped(unmatched)
    if not matches:
        raise UserError(f"No image of {Path(a).absolute()} has the name of one in {Path(b).absolute()}.")
    return matches


def match_paths(a: Sequence[Path], b: Sequence[Path]) -> tuple[list[Match], list[Skipped]]:
    """`match_folders` of listed files; also returns (file name, reason) of those without a partner."""
    return match_named(*([(path.stem, path) for path in paths] for paths in (a, b)))


def match_named(a: Sequence[NamedPath], b: Sequence[NamedPath]) -> tuple[list[Match], list[Skipped]]:
    """`match_paths` of (name, path): the names are matched in the place of the stems."""
    matches = []
    # Equal names first, so that `x_LR4` and `x_HR` in both folders stay apart.
    for shortened in (str, _without_role):
        groups = [_grouped(paths, shortened) for paths in (a, b)]
        common = groups[0].keys() & groups[1].keys()
        matches += [(name, *(_only(group[name]) for group in groups)) for name in common]
        a, b = ([(name, path) for name, path in paths if shortened(name) not in common] for paths in (a, b))
    unmatched = [(path.name, f"no partner for {path}") for _, path in (*a, *b)]
    return sorted(matches, key=lambda match: natural_key(Path(match[0]))), unmatched


def _without_role(name: str) -> str:
    return ROLE_SUFFIX.sub("", name)


def _grouped(paths: Sequence[NamedPath], shortened: Callable[[str], str]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for name, path in paths:
        groups.setdefault(shortened(name), []).append(path)
    return groups


def _only(paths: list[Path]) -> Path:
    return named_once([("", path) for path in paths])[0][1]
