"""Random operands of integer products, and the products in int64, written out."""

from dataclasses import replace
from itertools import product as combinations
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.kernels import QuantizedInput, QuantizedWeight, Window
from quantsr.kernels.operands import PACKED_BITS, align, pack, part_sums

Operand = TypeVar("Operand", QuantizedInput, QuantizedWeight)


def random_codes(shape: tuple[int, ...], bits: int, sizes: tuple[int, ...]) -> Tensor:
    """Aligned codes, among them the lowest and the highest."""
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, shape, dtype=torch.int8)
    codes.view(-1)[:2] = torch.tensor([-half, half - 1])
    return align(codes, sizes)


def random_input(
    positions: tuple[int, ...],
    sizes: tuple[int, ...],
    bits: int = 8,
    by_token: bool = False,
    zeros: int = 8,
    padding: tuple[int, ...] = (),
) -> QuantizedInput:
    """Codes with a scale of 1 and zeros of up to ``zeros``: values are whole numbers."""
    codes = random_codes((*positions, sum(sizes)), bits, sizes)
    shape = (*positions, len(sizes)) if by_token else (len(sizes),)
    zero = torch.randint(-zeros, zeros + 1, shape).float()
    around = [0, 0, *(pad for axis in reversed(padding) for pad in (axis, axis))]
    if by_token:
        zero = F.pad(zero, around)
    inside, codes = F.pad(torch.ones(*positions, 1, dtype=torch.bool), around), F.pad(codes, around)
    nothing = zero.clamp(-128, 127).repeat_interleave(torch.tensor(sizes), -1).to(torch.int8)
    codes = torch.where(inside, codes, align(nothing, sizes))
    return QuantizedInput(codes, part_sums(codes, sizes), torch.ones(zero.shape), zero, padding)


def random_weight(outputs: int, taps: int, sizes: tuple[int, ...], bits: int = 8, zeros: int = 8) -> QuantizedWeight:
    """The same for a weight; packed where a layer would pack it."""
    codes = random_codes((outputs, taps, sum(sizes)), bits, sizes)
    bounds = (outputs, len(sizes))
    zero = torch.randint(-zeros, zeros + 1, bounds).float()
    stored = pack(codes) if bits <= PACKED_BITS else codes
    return QuantizedWeight(stored, part_sums(codes, sizes), torch.ones(bounds), zero, sizes, bits)


def extreme(operand: Operand, code: int, channels: int) -> Operand:
    """The same with one code everywhere, in its one part of ``channels``."""
    codes = align(torch.full((*operand.codes.shape[:-1], channels), code, dtype=torch.int8), (channels,))
    return replace(operand, codes=codes, sums=part_sums(codes, (channels,)))


def values(codes: Tensor, zero: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """int64 ``(..., channels)`` of codes less zeros, without what fills the parts up."""
    pieces, start = [], 0
    for part, size in enumerate(sizes):
        pieces.append(codes[..., start : start + size].long() - zero[..., part : part + 1].long())
        start += -(-size // 64) * 64
    return torch.cat(pieces, -1)


def convolve(x: Tensor, w: Tensor, window: Window) -> Tensor:
    """``(b, *spatial, c)`` and ``(n, taps, c)`` to ``(b, *output, n)`` in int64, output by output."""
    output = window.output(x.shape[1:-1])
    y = torch.zeros(len(x), *output, len(w), dtype=torch.int64)
    for at in combinations(*map(range, output)):
        for number, tap in enumerate(combinations(*map(range, window.kernel))):
            axes = zip(at, tap, window.stride, window.padding, window.dilation, strict=True)
            seen = [o * step - pad + t * dilation for o, t, step, pad, dilation in axes]
            if all(0 <= i < n for i, n in zip(seen, x.shape[1:-1], strict=True)):
                y[(slice(None), *at)] += x[(slice(None), *seen)] @ w[:, number].T
    return y


def expected_product(x: QuantizedInput, weight: QuantizedWeight, window: Window) -> Tensor:
    """The product of the values, for scales of 1."""
    zero = torch.zeros_like(weight.scale) if weight.zero is None else weight.zero
    inputs = values(x.codes, x.zero, weight.sizes)
    for axis, pad in enumerate(x.padding, start=1):
        inputs = inputs.narrow(axis, pad, inputs.shape[axis] - 2 * pad)
    return convolve(inputs, values(weight.unpacked, zero[:, None], weight.sizes), window)


LINEAR = Window()
WINDOWS = {
    "linear": (LINEAR, (9,)),
    "conv1x1": (Window((1, 1), (1, 1), (0, 0), (1, 1)), (2, 4, 3)),
    "conv1x1_strided": (Window((1, 1), (2, 2), (0, 0), (1, 1)), (2, 4, 3)),
    "conv3x3": (Window((3, 3), (1, 1), (1, 1), (1, 1)), (2, 4, 5)),
    "conv3x3_unpadded": (Window((3, 3), (1, 1), (0, 0), (1, 1)), (1, 4, 5)),
    "conv3x3_strided": (Window((3, 3), (2, 2), (1, 1), (1, 1)), (2, 5, 4)),
    "conv3x3_strided_unpadded": (Window((3, 3), (2, 2), (0, 0), (1, 1)), (1, 7, 6)),
    "conv3x2_dilated": (Window((3, 2), (2, 1), (2, 1), (1, 2)), (1, 5, 6)),
    "conv1d": (Window((3,), (2,), (1,), (1,)), (2, 7)),
    "conv3d_over_time": (Window((3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1)), (1, 4, 2, 3)),
}
"""Windows with the positions of an input; the Triton kernels know all of them."""
