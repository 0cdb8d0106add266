from dataclasses import FrozenInstanceError

import pytest

from quantsr.quant.spec import ACT_BITS, AffineSpec, Bits


@pytest.mark.parametrize("symmetric", [False, True], ids=["unsigned", "symmetric"])
@pytest.mark.parametrize("bits", ACT_BITS)
def test_b_bits_have_two_to_the_b_codes(bits, symmetric):
    spec = AffineSpec(bits, symmetric)
    assert spec.qmax - spec.qmin + 1 == 2**bits


def test_unsigned_codes_start_at_zero_and_symmetric_codes_surround_it():
    assert (AffineSpec(4).qmin, AffineSpec(4).qmax) == (0, 15)
    assert (AffineSpec(4, symmetric=True).qmin, AffineSpec(4, symmetric=True).qmax) == (-8, 7)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 4.5])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=rf"bits must be a whole number from 2 to 16, not {bits}"):
        AffineSpec(bits)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"granularity": "row"}, "granularity must be one of .*'tensor', 'channel', 'token'.* not 'row'"),
        ({"range": "mse"}, "range must be one of .*'minmax'.* not 'mse'"),
        ({"granularity": "token", "range": "learned"}, "token granularity needs range='dynamic'"),
    ],
    ids=["granularity", "range", "static_tokens"],
)
def test_options_have_one_spelling(option, message):
    with pytest.raises(ValueError, match=message):
        AffineSpec(8, **option)


def test_a_spec_is_a_value():
    assert AffineSpec(4, range="learned") == AffineSpec(4, range="learned")
    assert len({AffineSpec(4), AffineSpec(4), AffineSpec(8)}) == 2
    with pytest.raises(FrozenInstanceError):
        AffineSpec(4).bits = 8


@pytest.mark.parametrize(("weight", "act", "name"), [(1, 8, "weight"), (9, 9, "weight"), (8, 1, "act"), (8, 17, "act")])
def test_bits_of_a_run_name_what_is_out_of_range(weight, act, name):
    with pytest.raises(ValueError, match=rf"bits\.{name} must be"):
        Bits(weight, act)


def test_bits_of_a_run():
    assert str(Bits(4, 8)) == "w4a8"
    assert Bits(8, 16) != Bits(8, 8)


@pytest.mark.parametrize(
    ("bits", "raised"), [(Bits(4, 4), Bits(8, 8)), (Bits(2, 16), Bits(8, 16)), (Bits(8, 8), Bits(8, 8))], ids=str
)
def test_bits_are_raised_where_they_are_lower(bits, raised):
    assert bits.at_least(8) == raised


def test_bits_are_parsed_as_they_are_written():
    assert Bits.parse("w4a8") == Bits(4, 8)
    with pytest.raises(ValueError, match="written like w4a8, not 'w4'"):
        Bits.parse("w4")
