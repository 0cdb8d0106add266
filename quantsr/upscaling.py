"""A model over images and clips of any length, computed on a device; an image and a clip from files to files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import Progress, track
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.clip_frames import Frames
from quantsr.data.degradations import to_float
from quantsr.data.video import write_video
from quantsr.errors import UserError
from quantsr.evaluation.outputs import FRAMES_PER_SECOND, as_saved
from quantsr.streaming import stream
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher

OVERLAP = 1  # Frames that neighbouring segments of a clip share.


def on_device(model: Teacher, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    """A model as a function between images or clips on the CPU, computed on ``device``.

    Clips go through in segments that share :data:`OVERLAP` frames; an image model takes them frame by frame.
    """
    model.to(device)

    def run(lq: Tensor) -> Tensor:
        if lq.ndim == 4:
            return model(lq.to(device)).float().cpu()
        return torch.stack([torch.stack(list(_streamed(model, clip, device))) for clip in lq])

    return run


def stream_frames(model: Teacher, frames: Iterable[Tensor], device: torch.device | str) -> Iterator[Tensor]:
    """The frames ``(3, h, w)`` of a clip through a model on ``device``, one after the other."""
    model.to(device)
    return _streamed(model, frames, device)


def _streamed(model: Teacher, frames: Iterable[Tensor], device: torch.device | str) -> Iterator[Tensor]:
    """The same for a model that is there already, though perhaps with parts that wait (:mod:`quantsr.offload`)."""

    def restore(segment: Tensor) -> Tensor:
        if model.frames == 1:
            return model(segment[:, 0].to(device))[:, None].float().cpu()
        return model(segment.to(device)).float().cpu()

    return stream(restore, frames, model.frames, OVERLAP if model.frames > 1 else 0)


def upscale(model: Teacher, clip: Frames, folder: Path, device: torch.device | str) -> tuple[Path, Path]:
    """Put a clip through a model, frame after frame, into files.

    Nothing is held but a segment, however long the clip is.

    Args:
        model: of images or clips.
        clip: what to upscale.
        folder: where ``NAME.mp4`` goes, and the frames as images, in ``NAME/``.
        device: to compute on.

    Returns:
        The video and the folder of frames.
    """
    images = folder / clip.path.stem
    images.mkdir(parents=True)

    def saved() -> Iterator[Tensor]:
        frames = track(stream_frames(model, clip, device), "upscaling", len(clip), transient=True)
        for number, frame in enumerate(frames):
            to_pil_image(as_saved(frame)).save(images / f"{number:05d}.png")  # It would cut, not round.
            yield frame

    video = images.with_suffix(".mp4")
    write_video(video, saved(), getattr(clip, "fps", FRAMES_PER_SECOND))
    return video, images


@torch.no_grad()
def upscale_image(model: Teacher, image: Tensor, output: Path, device: torch.device | str) -> None:
    """Put an image through a model, into a file.

    Args:
        model: of images.
        image: (3, h, w) uint8.
        output: the new file.
        device: to compute on.

    Raises:
        UserError: a model of clips.
    """
    if model.frames > 1:
        raise UserError(f"the model takes segments of {model.frames} frames: give it a clip, not an image")
    with shown_by_tiles(model, *image.shape[-2:]):
        sr = on_device(model, device)(to_float(image)[None])[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(as_saved(sr)).save(output)


@contextmanager
def shown_by_tiles(model: Teacher, height: int, width: int) -> Iterator[None]:
    """Within, a bar counts the tiles of an input of that size, for models that take their images in tiles."""
    if not isinstance(model, OneStepTeacher):
        yield
        return
    with Progress(transient=True) as progress:
        task = progress.add_task("upscaling", total=model.tiles(model.scale * height, model.scale * width))
        hooks = [n.register_forward_hook(lambda *_: progress.advance(task)) for n in model.networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
