"""A model over images and clips of any length, computed on a device."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from quantsr.quant.quantizer import Quantizer
from quantsr.streaming import stream
from quantsr.teachers.base import Teacher

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


def takes_batches(model: Teacher) -> bool:
    """Whether an image, or a tile, comes out the same whatever else is in its batch.

    A student with a dynamic range per tensor has one range for the whole batch.
    """
    specs = [module.spec for module in model.modules() if isinstance(module, Quantizer)]
    return not any(spec.range == "dynamic" and spec.granularity == "tensor" for spec in specs)
