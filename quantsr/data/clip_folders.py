"""Folders of clips, each a subfolder of frames or a video file: found, divided by name, opened if usable."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from quantsr.data.clip_frames import Frames
from quantsr.data.files import Skipped, Unusable, natural_key, warn_skipped
from quantsr.data.splits import split
from quantsr.data.video import VIDEO_EXTENSIONS, open_frames
from quantsr.errors import UserError

ClipMatch = tuple[str, Path, Path | None]
Named = TypeVar("Named", bound=tuple[Any, ...])

PARTS = ("calibration", "validation")


@dataclass(frozen=True)
class Clip:
    """One scene: `gt` is clean; without `lq` the low-quality version is made of it."""

    name: str
    gt: Frames
    lq: Frames | None = None


def list_clips(root: str | Path) -> list[Path]:
    """The subfolders and video files of a folder, in natural order.

    Raises:
        UserError: if the folder is missing or has neither.
    """
    root = Path(root)
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
    return sorted(paths, key=natural_key)


def open_clips(
    matches: Sequence[ClipMatch], scale: int, frames: int, side: int, decode_to: int | None
) -> tuple[list[Clip], list[Skipped]]:
    """Open clips, leaving out those that cannot be used.

    Args:
        matches: (name, clean clip, low-quality clip or None) of each.
        scale: how many times larger the clean clip must be; what is left over by a division is allowed.
        frames: fewest frames that a clip must have.
        side: shortest side of a frame that a clean clip must have.
        decode_to: decode so many first frames (None: all) to see whether they can be; only the headers of image
            files are read of the others.

    Returns:
        The clips, and (name, reason) of each left out, which is also logged.
    """
    clips, skipped = [], []
    for name, gt, lq in matches:
        try:
            clip = Clip(name, open_frames(gt), open_frames(lq) if lq else None)
            _check(clip, scale, frames, side)
            for frames_of in (clip.gt, clip.lq):
                if frames_of is not None:
                    frames_of.check(decode_to)
            clips.append(clip)
        except (Unusable, UserError) as reason:
            skipped.append((name, str(reason)))
    warn_skipped(skipped)
    return clips, skipped


def _check(clip: Clip, scale: int, frames: int, side: int) -> None:
    """Compare what is known without decoding; Unusable if it does not fit."""
    (height, width), length = clip.gt.size, len(clip.gt)
    if length < frames:
        raise Unusable(f"{length} frames, fewer than {frames}")
    if min(height, width) < side:
        raise Unusable(f"{width}x{height} pixels, smaller than {side}")
    if clip.lq is None:
        return
    if len(clip.lq) != length:
        raise Unusable(f"{length} frames of gt and {len(clip.lq)} of lq")
    if clip.lq.size != (height // scale, width // scale):
        lq = f"{clip.lq.size[1]}x{clip.lq.size[0]}"
        raise Unusable(f"gt of {width}x{height} pixels is not {scale} times the size of lq, {lq}")


def divide(
    items: Sequence[Named], pattern: str, validation_pattern: str | None, share: float, seed: int
) -> tuple[list[Named], list[Named]]:
    """Divide named items into (calibration, validation), by a pattern for validation if given, else by `split`.

    Args:
        items: tuples that begin with a name.
        pattern: glob pattern of the names to use.
        validation_pattern: glob pattern of the names for validation, which never calibrate.
        share, seed: see `split`.

    Raises:
        UserError: if the share is not in [0, 1].
    """
    wanted = [item for item in items if fnmatchcase(item[0], pattern)]
    if validation_pattern is None:
        return split(wanted, share, seed)
    validation = [item for item in items if fnmatchcase(item[0], validation_pattern)]
    return [item for item in wanted if not fnmatchcase(item[0], validation_pattern)], validation
