"""The operands of an integer product, as kernels want them: int8 codes, channels last, parts of channels aligned.

A value is (code - zero) * scale. Codes are shifted by half their range, so that b bits are the whole numbers
-2^(b-1) to 2^(b-1) - 1 whatever the number format: they fit int8, and symmetric formats have a zero of 0. The zero of
others is a whole number, in float32 because it may be any: a range that does not hold 0 has it outside of the codes.

Input channels come in parts with a scale each (see :mod:`quantsr.quant.parts`). Every part begins at a multiple of
``ALIGN`` channels, filled up with codes of 0 on both sides, so that a kernel's tiles never hold two parts and odd
numbers of channels need no masks. ``k`` below is the number of channels so aligned, ``p`` that of parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

ALIGN = 64
"""Channels that a part is a multiple of: 64 bytes of int8 codes, two tensor-core steps."""

MOST_BITS = 8
"""Of a code."""

PACKED_BITS = 4
"""Weights of up to this many bits are stored two to a byte."""

LARGEST_PRODUCT = 255 * 128
"""Of an input's code less its zero, where that is a code too, and a weight's code."""

LONGEST_SUM = (2**31 - 1) // LARGEST_PRODUCT
"""Products whose sum surely fits int32."""

LARGEST_SCORE = 255 * 255
"""Product of two codes less their zeros."""

MOST_KEYS = (2**31 - 1) // 2**14
"""Products of two codes whose sum surely fits int32."""

SMALLEST_PROBABILITY = 2 * 255 / 2**31
"""What the scale of attention's probabilities, whose sum is 1, does not fall below, in units of the largest scale of
keys: their codes, less the zero, then add up to so little that a sum of products with values fits int32."""


@dataclass(frozen=True)
class QuantizedInput:
    """An activation.

    Attributes:
        codes: ``(..., k)`` int8: ``(tokens, k)``, or for convolutions ``(b, *spatial, k)``, whose spatial axes begin
            and end with ``padding`` positions that stand for values of 0.
        sums: ``(..., p)`` int32, of the codes of each part; None where no weight's zero asks for them.
        scale, zero: float32, ``(p,)``, or ``(..., p)`` where every token has its own.
        padding: positions at either end of each spatial axis. Their codes are the zero (where that is no int8 code, the
            nearest one), so that a product sees nothing there and needs no masks.
    """

    codes: Tensor
    sums: Tensor | None
    scale: Tensor
    zero: Tensor
    padding: tuple[int, ...] = ()

    @property
    def by_token(self) -> bool:
        """Whether every token has its own scale."""
        return self.scale.ndim > 1


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight.

    Attributes:
        codes: ``(n, taps, k)`` int8, or packed by :func:`pack` ``(n, taps, k / 2)`` uint8; n output channels, a tap
            for each position of the kernel in row-major order (one for a linear layer).
        sums: ``(n, taps, p)`` int32, of the codes of each part.
        scale, zero: ``(n, p)`` float32; no ``zero`` where all are 0, as in symmetric formats.
        sizes: channels of each part.
        bits: of a code.
    """

    codes: Tensor
    sums: Tensor
    scale: Tensor
    zero: Tensor | None
    sizes: tuple[int, ...]
    bits: int = 8

    @property
    def packed(self) -> bool:
        """Whether codes are two to a byte."""
        return self.codes.dtype == torch.uint8

    @property
    def unpacked(self) -> Tensor:
        """The codes as ``(n, taps, k)`` int8."""
        return unpack(self.codes) if self.packed else self.codes


@dataclass(frozen=True)
class Branch:
    """The second half of a low-rank branch, which a product adds to its output: hidden @ up^T.

    Attributes:
        hidden: ``(outputs, r)``, at every position of the output, the first half's result.
        up: ``(n, r)``, of the same type.
    """

    hidden: Tensor
    up: Tensor


@dataclass(frozen=True)
class Probabilities:
    """The number format of attention's probabilities, whose codes exist inside of the product alone.

    Attributes:
        scale, zero: float32, ``(1,)``, as of a :class:`QuantizedInput`; see ``SMALLEST_PROBABILITY``.
        bits: of a code, 2 to 8.
        key_scale: ``(keys,)`` float32, what probabilities are multiplied by before they are quantized; None for 1.
    """

    scale: Tensor
    zero: Tensor
    bits: int
    key_scale: Tensor | None = None


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each part begins among aligned channels, and where the last one ends: k."""
    found = [0]
    for size in sizes:
        found.append(found[-1] - (-size // ALIGN) * ALIGN)
    return found


def align(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """``(..., channels)`` to ``(..., k)``, with zeros between the parts."""
    pieces = values.split(list(sizes), -1)
    return torch.cat([F.pad(piece, (0, -piece.shape[-1] % ALIGN)) for piece in pieces], -1)


def part_sums(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sums of aligned codes, ``(..., k)`` to ``(..., p)`` int32."""
    bounds = starts(sizes)
    widths = [end - start for start, end in pairwise(bounds)]
    return torch.stack([piece.sum(-1, dtype=torch.int32) for piece in codes.split(widths, -1)], -1)


def pack(codes: Tensor) -> Tensor:
    """Codes of up to 4 bits, two to a byte.

    Of every ``ALIGN`` channels, byte i holds channel i in its low and channel i + ALIGN / 2 in its high half, both as
    two's complement: the two halves of a tile are then unpacked without moving a value to another lane.

    Args:
        codes: ``(..., k)`` int8 in [-8, 7].

    Returns:
        ``(..., k / 2)`` uint8.
    """
    low, high = rearrange(codes, "... (block half i) -> half ... (block i)", half=2, i=ALIGN // 2)
    return (low & 15 | high << 4).view(torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """What :func:`pack` packed, ``(..., k)`` int8."""
    signed = packed.view(torch.int8)
    halves = torch.stack([signed << 4 >> 4, signed >> 4])
    return rearrange(halves, "half ... (block i) -> ... (block half i)", i=ALIGN // 2)
