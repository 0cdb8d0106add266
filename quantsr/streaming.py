"""Restore clips of any length through a model that takes segments of a few frames."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from quantsr.errors import UserError

Restore = Callable[[Tensor], Tensor]


def stream(restore: Restore, frames: Iterable[Tensor], segment: int, overlap: int) -> Iterator[Tensor]:
    """Restore frames one segment after the other, as many as come.

    Neighbouring segments share ``overlap`` frames, which are blended linearly; a clip that does not end with a
    segment is continued by its last frame and the surplus left out again (MGLD-VSR's own inference). MGLD-VSR has no
    overlap; sharing frames is our choice, against jumps where a new segment begins.

    A frame is given out as soon as no later segment has a part in it, and not kept: besides what ``restore`` itself
    needs, memory holds the frames of one segment and of one overlap, however long the clip is. No gradients.

    Args:
        restore: the model, from ``(1, segment, 3, h, w)`` to ``(1, segment, 3, H, W)``.
        frames: ``(3, h, w)`` each, all of one size; read as they are needed.
        segment: frames that the model takes.
        overlap: frames that neighbouring segments share, 0 to ``segment - 1``.

    Yields:
        As many restored frames ``(3, H, W)`` as there are frames, in their order, each with its own memory.

    Raises:
        UserError: an overlap that leaves no new frames, or is negative.
        ValueError: ``restore`` returns another number of frames.
    """
    if not 0 <= overlap < segment:
        raise UserError(f"Segments of {segment} frames can overlap by 0 to {segment - 1} frames, not by {overlap}.")
    return _stream(restore, iter(frames), segment, overlap)


def restore_clip(restore: Restore, clip: Tensor, segment: int, overlap: int) -> Tensor:
    """:func:`stream` for a whole clip: from ``(t, 3, h, w)``, t at least 1, to ``(t, 3, H, W)``."""
    return torch.stack(list(stream(restore, clip, segment, overlap)))


def _stream(restore: Restore, frames: Iterator[Tensor], segment: int, overlap: int) -> Iterator[Tensor]:
    stride = segment - overlap
    weights = _weights(segment, overlap)
    # The weighted mean so far and its weight, of every frame that is not given out yet.
    held: deque[tuple[Tensor, int]] = deque()
    window: list[Tensor] = []
    while new := list(islice(frames, segment - len(window))):
        window += new
        for position, frame in enumerate(_run(restore, window, segment)):
            if position < len(held):
                held[position] = _blend(*held[position], frame, weights[position])
            else:
                # Copied: a view would keep the whole segment in memory.
                held.append((frame.clone(), weights[position]))
        del new, frame, window[:stride]  # What is not needed while the caller works on the frames.
        while len(held) > overlap:
            yield held.popleft()[0]
    while held:
        yield held.popleft()[0]


def _run(restore: Restore, window: list[Tensor], segment: int) -> Tensor:
    """The restored frames of a window ``(t, 3, H, W)`` of at most ``segment`` frames."""
    padded = torch.stack(window + window[-1:] * (segment - len(window)))
    # Here and not around the loop: a generator that waits would leave its caller without gradients.
    with torch.no_grad():
        restored = restore(padded[None])
    if restored.shape[:2] != (1, segment):
        raise ValueError(f"1 segment of {segment} frames has come back as {restored.shape[0]} of {restored.shape[1]}")
    return restored[0, : len(window)]


def _weights(segment: int, overlap: int) -> list[int]:
    """Weight of a segment at each of its positions: rising by 1 over the overlap, level, falling by 1.

    Over an overlap of up to half a segment, the weights of both segments add up to ``overlap + 1``, and neither is 0.
    Over a longer one, more than two segments meet in a frame, and their weights are normalized by :func:`_blend`.
    """
    return [min(position + 1, segment - position, overlap + 1) for position in range(segment)]


def _blend(mean: Tensor, total: int, frame: Tensor, weight: int) -> tuple[Tensor, int]:
    """Take one more frame into a weighted mean. Equal frames stay as they are, to the last bit."""
    return mean.lerp(frame, weight / (total + weight)), total + weight
