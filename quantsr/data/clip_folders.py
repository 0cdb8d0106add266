"""Folders of clips, each a subfolder of frames or a video file: found, divided by name, opened if usable."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from quantsr.data.clip_frames import Frames
from quantsr.data.files import NamedPath, Skipped, Unusable, check_side, named_once, natural_key, warn_skipped, written
from quantsr.data.splits import split
from quantsr.data.video import VIDEO_EXTENSIONS, open_frames
from quantsr.errors import UserError

ClipMatch = tuple[str, Path | None, Path | None]
Named = TypeVar("Named", bound=tuple[Any, ...])

PARTS = ("calibration", "validation")
ANY = "*"


@dataclass(frozen=True)
class Clip:
    """One scene: `gt` is clean. Without `lq` the low-quality version is made of it; without `gt` there is no clean one.

    Attributes:
        versions: those that are there, the clean one first.
    """

    name: str
    gt: Frames | None
    lq: Frames | None = None

    @property
    def versions(self) -> list[Frames]:
        return [frames for frames in (self.gt, self.lq) if frames is not None]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.versions[0])


def list_clips(root: str | Path) -> list[NamedPath]:
    """The subfolders and video files of a folder, by name, in natural order.

    Args:
        root: the folder; or a path in which one part is ``*``, as in ``udm10/*/truth``: the folders that there are of
            this kind, each named by what stands in the place of ``*``.

    Raises:
        UserError: if the folder is missing or has neither, or two have the same name.
    """
    root = Path(root)
    if ANY in root.parts:
        return _list_inner_folders(root)
    if not root.is_dir():
        raise UserError(f"No folder of clips at {root.absolute()}: give the folder that has the clips.")
    paths = [
        path
        for path in root.iterdir()
        if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in VIDEO_EXTENSIONS)
    ]
    if not paths:
        raise UserError(
            f"No clip in {root.absolute()}: looked for subfolders of frames and for files ending in "
            f"{' '.join(VIDEO_EXTENSIONS)}."
        )
    # Of a folder, what is behind a dot belongs to the name.
    return named_once([(path.name if path.is_dir() else path.stem, path) for path in sorted(paths, key=natural_key)])


def _list_inner_folders(pattern: Path) -> list[NamedPath]:
    place = pattern.parts.index(ANY)
    outer, inner = Path(*pattern.parts[:place]), Path(*pattern.parts[place + 1 :])
    paths = [path for path in outer.glob(ANY) if (path / inner).is_dir()]
    if not paths:
        raise UserError(f"No clip in {outer.absolute()}: looked for a folder {inner} in each of its subfolders.")
    return [(path.name, path / inner) for path in sorted(paths, key=natural_key)]


def open_clips(
    matches: Sequence[ClipMatch], scale: int, frames: int, side: int, decode_to: int | None
) -> tuple[list[Clip], list[Skipped]]:
    """Open clips, leaving out those that cannot be used.

    Args:
        matches: (name, clean clip, low-quality clip) of each, one of which may be None.
        scale: how many times larger the clean clip must be; what is left over by a division is allowed.
        frames: fewest frames that a clip must have.
        side: shortest side of a frame that a clean clip must have, or would have.
        decode_to: decode so many first frames (None: all) to see whether they can be; only the headers of image
            files are read of the others.

    Returns:
        The clips, and (name, reason) of each left out, which is also logged.
    """
    clips, skipped = [], []
    for name, gt, lq in matches:
        try:
            clip = Clip(name, *(open_frames(path) if path else None for path in (gt, lq)))
            _check(clip, scale, frames, side)
            for version in clip.versions:
                _decode(version, decode_to)
            clips.append(clip)
        except (Unusable, UserError) as reason:
            skipped.append((name, str(reason)))
    warn_skipped(skipped)
    return clips, skipped


def _check(clip: Clip, scale: int, frames: int, side: int) -> None:
    """Compare what is known without decoding; Unusable if it does not fit."""
    if len(clip) < frames:
        raise Unusable(f"{len(clip)} frames, fewer than {frames}")
    larger = scale if clip.gt is None else 1
    check_side(clip.versions[0].size, -(-side // larger), larger)
    if clip.gt is None or clip.lq is None:
        return
    if len(clip.lq) != len(clip.gt):
        raise Unusable(f"{len(clip.gt)} frames of gt and {len(clip.lq)} of lq")
    if clip.lq.size != tuple(side // scale for side in clip.gt.size):
        gt, lq = written(clip.gt.size), written(clip.lq.size)
        raise Unusable(f"gt of {gt} pixels is not {scale} times the size of lq, {lq}")


def _decode(frames: Frames, count: int | None) -> None:
    """Decode the first frames, None for all; Unusable if some cannot be, as before a recording's first key frame."""
    expected = len(frames) if count is None else min(count, len(frames))
    decoded = frames.check(count)
    if decoded < expected:
        raise Unusable(f"{frames.path.absolute()} has {expected} frames, of which {decoded} can be decoded")


def divide(
    items: Sequence[Named], pattern: str | Sequence[str], validation_pattern: str | None, share: float
) -> tuple[list[Named], list[Named]]:
    """Divide named items into (calibration, validation), by a pattern for validation if given, else by `split`.

    Args:
        items: tuples that begin with a name.
        pattern: glob pattern of the names to use, or several.
        validation_pattern: glob pattern of the names for validation, which never calibrate.
        share: see `split`.

    Raises:
        UserError: if the share is not in [0, 1].
    """
    patterns = [pattern] if isinstance(pattern, str) else pattern
    wanted = [item for item in items if any(fnmatchcase(item[0], pattern) for pattern in patterns)]
    if validation_pattern is None:
        return split(wanted, share)
    validation = [item for item in items if fnmatchcase(item[0], validation_pattern)]
    return [item for item in wanted if not fnmatchcase(item[0], validation_pattern)], validation
