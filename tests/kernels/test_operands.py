"""How codes lie in memory."""

import pytest
import torch

from quantsr.kernels.operands import ALIGN, align, pack, part_sums, starts, unpack


def test_parts_begin_at_multiples():
    assert starts((3, 64, 65, 1)) == [0, 64, 128, 256, 320]


def test_alignment_fills_every_part_with_zeros():
    codes = torch.arange(1, 8, dtype=torch.int8).expand(2, 7)
    aligned = align(codes, (3, 4))
    assert aligned.shape == (2, 128)
    assert aligned[0, :4].tolist() == [1, 2, 3, 0] and aligned[0, 64:69].tolist() == [4, 5, 6, 7, 0]
    assert aligned.count_nonzero() == codes.count_nonzero()


def test_sums_of_parts():
    codes = align(torch.tensor([[1, -2, 3], [127, 127, 127]], dtype=torch.int8), (1, 2))
    sums = part_sums(codes, (1, 2))
    assert sums.dtype == torch.int32 and sums.tolist() == [[1, 1], [127, 254]]


def test_packing_halves_the_bytes_and_loses_nothing():
    codes = torch.randint(-8, 8, (3, 9, 2 * ALIGN), dtype=torch.int8)
    packed = pack(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 9, ALIGN)
    assert torch.equal(unpack(packed), codes)


@pytest.mark.parametrize("channel", [0, 1, 31, 32, 63, 64, 100])
def test_where_a_code_is_packed(channel):
    """Low halves hold the first 32 of 64 channels, high halves the others."""
    codes = torch.zeros(128, dtype=torch.int8)
    codes[channel] = -3
    byte = channel // 64 * 32 + channel % 32
    assert pack(codes)[byte] == (13 if channel % 64 < 32 else 13 << 4)
    assert pack(codes).count_nonzero() == 1
