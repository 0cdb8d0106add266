"""Packed codes: every width, every remainder, exactly as many bytes as bits need."""

import math

import pytest
import torch

from quantsr.deploy import pack
from quantsr.deploy.pack import pack_bits, unpack_bits

WIDTHS = range(2, 9)


def codes_of(bits: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, shape, generator=generator)
    if codes.numel() > 1:
        codes.view(-1)[0], codes.view(-1)[-1] = 2**bits - 1, 0
    return codes


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (9,), (13, 0, 3), (5, 7, 3, 3), ()], ids=str)
def test_round_trip_in_exactly_the_bytes_that_the_bits_need(bits, shape):
    codes = codes_of(bits, *shape)
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (math.ceil(codes.numel() * bits / 8),)
    unpacked = unpack_bits(packed, bits, shape)
    assert unpacked.dtype == torch.uint8
    assert unpacked.shape == shape
    assert torch.equal(unpacked.long(), codes)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [16, 17, 24, 31, 37])
def test_slices_join_without_a_seam(bits, count, monkeypatch):
    codes = codes_of(bits, count)
    whole = pack_bits(codes, bits)
    monkeypatch.setattr(pack, "SLICE", 8)
    assert torch.equal(pack_bits(codes, bits), whole)
    assert torch.equal(unpack_bits(whole, bits, (count,)).long(), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_layout_is_that_of_one_big_little_endian_number(bits):
    codes = codes_of(bits, 29)
    number = sum(code << (bits * i) for i, code in enumerate(codes.tolist()))
    assert bytes(pack_bits(codes, bits).tolist()) == number.to_bytes(math.ceil(29 * bits / 8), "little")


def test_layout_by_hand():
    # 3 bits: 5 = 101, 1 = 001, 6 = 110, 2 = 010; from the highest bit down 010 110 001 101 = 0101 | 1000 1101.
    assert pack_bits(torch.tensor([5, 1, 6, 2]), 3).tolist() == [0b10001101, 0b0101]
    # 2 bits: four codes fill a byte; 4 bits: the first code is the low half.
    assert pack_bits(torch.tensor([0, 1, 2, 3, 3]), 2).tolist() == [0b11100100, 0b11]
    assert pack_bits(torch.tensor([[10], [3]]), 4).tolist() == [0x3A]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bfloat16], ids=str)
def test_dtype_of_the_codes_does_not_matter(dtype):
    codes = codes_of(7, 6, 5)
    assert torch.equal(pack_bits(codes.to(dtype), 7), pack_bits(codes, 7))


def test_order_is_that_of_the_shape_and_not_of_memory():
    codes = codes_of(4, 3, 5)
    assert torch.equal(pack_bits(codes.T, 4), pack_bits(codes.T.contiguous(), 4))


@pytest.mark.parametrize("wrong", [-1, 8, 2.5, math.nan, math.inf])
def test_a_code_that_does_not_fit_is_named(wrong):
    with pytest.raises(ValueError, match=rf"3 bits are whole numbers from 0 to 7, not {wrong}"):
        pack_bits(torch.tensor([0, 7, wrong]), 3)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_impossible_widths(bits):
    with pytest.raises(ValueError, match="from 2 to 8"):
        pack_bits(torch.zeros(4), bits)
    with pytest.raises(ValueError, match="from 2 to 8"):
        unpack_bits(torch.zeros(4, dtype=torch.uint8), bits, (4,))


@pytest.mark.parametrize(
    "packed",
    [torch.zeros(3, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8), torch.zeros(4), torch.zeros(2, 2).byte()],
    ids=["short", "long", "float", "two axes"],
)
def test_bytes_that_do_not_fit_the_shape(packed):
    with pytest.raises(ValueError, match="10 codes of 3 bits are 4 bytes"):
        unpack_bits(packed, 3, (2, 5))
