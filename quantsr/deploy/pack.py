"""Codes of b bits, really stored in b bits each.

Bit order, little-endian throughout: the codes form one string of bits, code i at bits b i to b i + b - 1 with its
lowest bit first, and bit j of the string is bit ``j % 8`` (counted from the lowest) of byte ``j // 8``. Zeros fill up
the last byte.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTHS = range(2, 9)
SLICE = 2**22
"""Codes worked on at a time, a multiple of 8: what is held between codes and bytes does not grow with the model."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack whole numbers into ``bits`` bits each.

    Args:
        codes: any shape and dtype, whole numbers in [0, 2^bits - 1]; read in row-major order.
        bits: 2 to 8.

    Returns:
        ``(ceil(n bits / 8),)`` uint8 for n codes, on their device.

    Raises:
        ValueError: an impossible width, or a code that is no whole number in the range.
    """
    _check_width(bits)
    codes = codes.reshape(-1)
    packed = torch.empty(packed_size(len(codes), bits), dtype=torch.uint8, device=codes.device)
    # A slice of 8 k codes fills a whole number of bytes, so slices are independent.
    for start in range(0, len(codes), SLICE):
        piece = _bytes_of(_checked(codes[start : start + SLICE], bits), bits)
        target = packed[packed_size(start, bits) : packed_size(start + SLICE, bits)]
        target.copy_(piece[: len(target)])
    return packed


def unpack_bits(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """What :func:`pack_bits` packed.

    Args:
        packed: 1-D uint8.
        bits: 2 to 8.
        shape: of the codes.

    Returns:
        uint8 codes of ``shape``, on the device of ``packed``.

    Raises:
        ValueError: an impossible width, or a number of bytes that does not fit the shape.
    """
    _check_width(bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bits are {packed_size(count, bits)} bytes in one axis, "
            f"not {tuple(packed.shape)} of {packed.dtype}"
        )
    codes = torch.empty(count, dtype=torch.uint8, device=packed.device)
    for start in range(0, count, SLICE):
        piece = _codes_of(packed[packed_size(start, bits) : packed_size(start + SLICE, bits)], bits)
        target = codes[start : start + SLICE]
        target.copy_(piece[: len(target)])
    return codes.reshape(tuple(shape))


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"bits must be a whole number from {WIDTHS.start} to {WIDTHS.stop - 1}, not {bits}")


def _checked(codes: Tensor, bits: int) -> Tensor:
    """``codes`` as int64, once they are known to fit."""
    whole = codes.long()
    wrong = (whole != codes) | (whole < 0) | (whole >= 2**bits)
    if wrong.any():
        raise ValueError(
            f"codes of {bits} bits are whole numbers from 0 to {2**bits - 1}, not {codes[wrong][0].item()}"
        )
    return whole


def _bytes_of(codes: Tensor, bits: int) -> Tensor:
    """int64 ``(n,)`` to uint8 ``(bits ceil(n / 8),)``: 8 codes make one word, whose lowest ``bits`` bytes they fill."""
    words = _joined(_grouped(codes, 8), bits)
    return _pieces(words, 8, bits).reshape(-1)


def _codes_of(packed: Tensor, bits: int) -> Tensor:
    """uint8 ``(m,)`` to uint8 ``(8 ceil(m / bits),)``: the way back."""
    words = _joined(_grouped(packed.long(), bits), 8)
    return _pieces(words, bits, 8).reshape(-1)


def _grouped(values: Tensor, size: int) -> Tensor:
    """``(n,)`` to ``(ceil(n / size), size)``, the last group filled up with zeros."""
    return F.pad(values, (0, -len(values) % size)).reshape(-1, size)


def _joined(groups: Tensor, width: int) -> Tensor:
    """int64 ``(n, k)`` of ``width`` bits each to words ``(n,)``; bit 63 is the sign, which no step here looks at."""
    words = groups[:, 0].clone()
    for number in range(1, groups.shape[1]):
        words |= groups[:, number] << (width * number)
    return words


def _pieces(words: Tensor, width: int, count: int) -> Tensor:
    """int64 words ``(n,)`` to uint8 ``(n, count)``, pieces of ``width`` bits each."""
    shifts = width * torch.arange(count, device=words.device)
    return ((words[:, None] >> shifts) & (2**width - 1)).to(torch.uint8)
