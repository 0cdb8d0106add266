"""A pipeline from files to files: an image, a folder of images, a clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.clip_frames import FolderFrames, Frames
from quantsr.data.degradations import to_float
from quantsr.data.files import EXTENSIONS, Unusable, list_images, read_one, read_usable, warn_skipped
from quantsr.data.video import open_frames, write_video
from quantsr.deploy.progress import Bars
from quantsr.deploy.saving import check_fits, free_file, output_file, output_folder, save_image, saved
from quantsr.errors import UserError
from quantsr.evaluation.outputs import FRAMES_PER_SECOND, as_saved
from quantsr.upscaling import stream_frames

if TYPE_CHECKING:
    from quantsr.deploy.pipeline import Pipeline

VIDEO = (".mp4",)
"""What videos are written as."""


def upscale_files(pipe: Pipeline, path: Path, output: str | Path | None, bars: Bars) -> Any:
    """What :meth:`Pipeline.__call__` does with a path.

    Raises:
        UserError: there is nothing, it cannot be read, or it is not said where results go.
    """
    path, output = path.expanduser(), None if output is None else Path(output).expanduser()
    if not path.exists():
        raise UserError(f"There is no image, folder or video at {path.absolute()}.")
    if is_image(path):
        pipe.check_takes(clip=False)
        return _image(pipe, path, output, bars)
    if output is None:
        raise UserError(f"say where the results of {path} go: output=FOLDER, or output=NAME.mp4 for a clip")
    if path.is_dir() and pipe.frames == 1:
        return _folder(pipe, path, output, bars)
    return _clip(pipe, open_frames(path), output, bars)


def is_image(path: Path) -> bool:
    """Whether ``path`` is named like an image file."""
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def upscale_clip(
    pipe: Pipeline,
    clip: Frames,
    video: Path | None = None,
    images: Iterable[Path] | None = None,
    bars: Bars | None = None,
) -> None:
    """Put a clip through a pipeline, frame after frame; nothing is held but a segment, however long the clip is.

    Args:
        pipe: of images or clips.
        clip: what to upscale.
        video: the mp4 file to write; its rate is the clip's.
        images: files to write the frames to, as many as there are or more: how many a video has is known at its end.
        bars: where a bar is drawn.

    Raises:
        UserError: a frame cannot be read.
    """
    restored = stream_frames(pipe.model, clip, pipe.device)
    frames: Iterator[Tensor] = (bars or Bars(False)).over(restored, "frames", len(clip))
    if images is not None:
        frames = saved(frames, images)
    if video is not None:
        write_video(video, frames, getattr(clip, "fps", FRAMES_PER_SECOND))
    deque(frames, maxlen=0)  # What no video has asked for.


def _image(pipe: Pipeline, path: Path, output: Path | None, bars: Bars) -> Any:
    pixels = read_one(path)
    target = None if output is None else output_file(output, path, EXTENSIONS, path.name)
    if target is not None:
        _check_fits(f"The image {path.absolute()} is", pixels.shape[-2:], pipe.scale, target)
    sr = pipe.restore(to_float(pixels)[None], bars)[0]
    return to_pil_image(as_saved(sr)) if target is None else save_image(sr, target)


def _folder(pipe: Pipeline, source: Path, output: Path, bars: Bars) -> list[Path]:
    """Every image by itself; those that cannot be read or written are left out, and named at the end."""
    paths, folder = list_images(source), output_folder(output, source)
    targets, written, skipped = [free_file(folder / path.name) for path in paths], [], []
    for path, target in bars.over(zip(paths, targets, strict=True), "images", len(paths)):
        try:
            pixels = read_usable(path)
            check_fits(pixels.shape[-2:], pipe.scale, target)
        except Unusable as reason:
            skipped.append((path.name, str(reason)))
            continue
        sr = pipe.restore(to_float(pixels)[None], bars)[0]
        written.append(save_image(sr, target))
    warn_skipped(skipped)
    if not written:
        name, reason = skipped[0]
        raise UserError(f"None of the {len(paths)} images in {source.absolute()} can be used: {name} is {reason}.")
    return written


def _clip(pipe: Pipeline, clip: Frames, output: Path, bars: Bars) -> Path | list[Path]:
    """Frames become frames of the same names, unless a video is asked for; a video becomes a video."""
    clip.check()  # All of it: decoding takes far less time than what would be lost.
    if isinstance(clip, FolderFrames) and output.suffix.lower() not in VIDEO:
        folder = output_folder(output, clip.path)
        images = [free_file(folder / path.name) for path in clip.paths]
        for image in images:
            _check_fits(f"Frames of {clip.path.absolute()} are", clip.size, pipe.scale, image)
        upscale_clip(pipe, clip, images=images, bars=bars)
        return images
    video = output_file(output, clip.path, VIDEO, f"{clip.path.stem}.mp4")
    upscale_clip(pipe, clip, video, bars=bars)
    return video


def _check_fits(what: str, size: tuple[int, int], scale: int, target: Path) -> None:
    """:func:`check_fits` with a UserError that begins with ``what``."""
    try:
        check_fits(size, scale, target)
    except Unusable as reason:
        raise UserError(f"{what} {reason}: give an output= of another ending.") from reason
