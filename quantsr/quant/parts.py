"""Bounds for parts of a tensor: which elements share one pair of bounds, and how bounds are spread over them.

Layers cut their input channels into parts (the channel split of PassionSR and QuantVSR into two halves; groups of 64;
one part where nothing is cut), and each part of weight and activation has its own bounds. With ``p`` parts, these are

    tensor   (p,)            channel   (rows, p)           token   x.shape with the channel axis p long
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantsr.quant.spec import Granularity


def halves(channels: int) -> tuple[int, ...]:
    """Sizes of the two halves of the channel split; a single channel is not cut."""
    return (channels // 2, channels - channels // 2) if channels > 1 else (channels,)


def groups(channels: int, size: int) -> tuple[int, ...]:
    """Sizes of groups of ``size`` channels, the last one perhaps smaller."""
    full, rest = divmod(channels, size)
    return (size,) * full + ((rest,) if rest else ())


def extremes(x: Tensor, granularity: Granularity, axis: int, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of every part of ``x``.

    Args:
        x: activation or weight; a weight's rows (output channels) are its axis 0.
        granularity: what shares bounds.
        axis: the input-channel axis.
        sizes: how many channels each part has.

    Returns:
        (lower, upper), each of the shape given at the top of this file.
    """
    # In the type of x, and float32 only what was found: another type is not worth a pass over all of x.
    pieces = x.detach().split(list(sizes), axis) if len(sizes) > 1 else (x.detach(),)
    if granularity == "tensor":
        found = [torch.aminmax(piece) for piece in pieces]
        lower, upper = torch.stack([*(f.min for f in found), *(f.max for f in found)]).float().chunk(2)
        return lower, upper
    if granularity == "channel":
        found = [torch.aminmax(piece.flatten(1), dim=1) for piece in pieces]
        return torch.stack([f.min for f in found], 1).float(), torch.stack([f.max for f in found], 1).float()
    found = [torch.aminmax(piece, dim=axis, keepdim=True) for piece in pieces]
    return torch.cat([f.min for f in found], axis).float(), torch.cat([f.max for f in found], axis).float()


def even(sizes: Sequence[int]) -> bool:
    """Whether all parts have the same size: then they can be an axis of their own, ``x.unflatten(axis, (p, -1))``."""
    return len(set(sizes)) == 1


def beside(values: Tensor, granularity: Granularity, axis: int, ndim: int) -> Tensor:
    """Values per part in a shape that broadcasts over a tensor whose even parts are an axis of their own.

    No value is repeated, while :func:`spread` makes as many of them as a linear layer has weights.

    Args:
        values: one per part, in the shape given at the top of this file.
        granularity: what shares bounds.
        axis: the input-channel axis of the tensor.
        ndim: number of axes of the tensor, without that of the parts.
    """
    if granularity == "token":
        return values.unsqueeze(axis % ndim + 1)
    shape = [1] * (ndim + 1)
    shape[axis % ndim] = values.shape[-1]
    if granularity == "channel":
        shape[0] = len(values)
    return values.reshape(shape)


def spread(values: Tensor, granularity: Granularity, axis: int, part_of: Tensor | None, ndim: int) -> Tensor:
    """Values per part in a shape that broadcasts over the tensor.

    Args:
        values: one per part, in the shape given at the top of this file.
        granularity: what shares bounds.
        axis: the input-channel axis of the tensor.
        part_of: (channels,) number of the part of each input channel; None for a single part.
        ndim: number of axes of the tensor.
    """
    shape = [1] * ndim
    if granularity == "tensor":
        if part_of is None:
            return values.reshape(())
        shape[axis] = -1
        return values[part_of].reshape(shape)
    if granularity == "channel":
        shape[0] = -1
        if part_of is not None:
            values, shape[axis] = values[:, part_of], len(part_of)
        return values.reshape(shape)
    return values if part_of is None else values.index_select(axis, part_of)
