import pytest
import torch

from quantsr.quant.parts import beside, even, extremes, groups, halves, spread


@pytest.mark.parametrize("channels", range(1, 10))
def test_halves_cover_the_channels_and_differ_by_one_at_most(channels):
    sizes = halves(channels)
    assert sum(sizes) == channels
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(channels, 2)


@pytest.mark.parametrize(
    ("channels", "size", "sizes"), [(8, 4, (4, 4)), (9, 4, (4, 4, 1)), (3, 4, (3,)), (4, 1, (1, 1, 1, 1))]
)
def test_the_last_group_takes_what_is_left(channels, size, sizes):
    assert groups(channels, size) == sizes


SHAPES = {"tokens": ((2, 5, 7), -1), "image": ((2, 7, 4, 3), 1), "clip": ((1, 7, 2, 3, 3), 1), "matrix": ((6, 7), 1)}
SIZES = {"whole": (7,), "halves": (3, 4), "groups": (3, 3, 1)}


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("granularity", ["tensor", "channel", "token"])
def test_bounds_are_the_extremes_of_what_shares_them(granularity, sizes, shape, axis):
    x = torch.randn(shape)
    lower, upper = extremes(x, granularity, axis, sizes)

    token_shape = list(shape)
    token_shape[axis] = len(sizes)
    expected = {"tensor": (len(sizes),), "channel": (shape[0], len(sizes)), "token": tuple(token_shape)}
    assert lower.shape == upper.shape == expected[granularity]

    # Every part taken by itself: its extremes, spread over its elements, enclose them and are met.
    part_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)) if len(sizes) > 1 else None
    low, high = (spread(t, granularity, axis, part_of, x.ndim).expand_as(x) for t in (lower, upper))
    shared = {
        "tensor": [d for d in range(x.ndim) if d != axis % x.ndim],
        "channel": list(range(1, x.ndim)),
        "token": [],
    }
    for xs, ls, hs in zip(*(t.split(sizes, axis) for t in (x, low, high)), strict=True):
        dims = sorted({*shared[granularity], axis % x.ndim})
        assert torch.equal(ls, xs.amin(dims, keepdim=True).expand_as(xs))
        assert torch.equal(hs, xs.amax(dims, keepdim=True).expand_as(xs))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "token"])
def test_bounds_of_16_bits_are_those_of_the_same_values_in_float32(granularity):
    x = torch.randn(2, 7, 4, 3).bfloat16()
    found, expected = (extremes(t, granularity, 1, (3, 4)) for t in (x, x.float()))
    assert all(torch.equal(f, e) and f.dtype == torch.float32 for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("sizes", [(8,), (4, 4), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "token"])
def test_even_parts_on_an_axis_of_their_own_get_the_spread_values(granularity, sizes, shape, axis):
    x = torch.randn([8 if size == 7 else size for size in shape])
    lower, _ = extremes(x, granularity, axis, sizes)
    part_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)) if len(sizes) > 1 else None
    expected = spread(lower, granularity, axis, part_of, x.ndim).expand_as(x)

    assert even(sizes)
    parts = x.unflatten(axis, (len(sizes), -1))
    assert torch.equal(beside(lower, granularity, axis, x.ndim).expand_as(parts).reshape(x.shape), expected)


def test_parts_of_different_sizes_are_not_even():
    assert not even((3, 4))


def test_bounds_of_half_precision_are_float32():
    lower, upper = extremes(torch.randn(4, 6).bfloat16(), "tensor", 1, (6,))
    assert lower.dtype == upper.dtype == torch.float32
