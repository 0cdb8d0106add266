"""A split puts every item into exactly one part, the same for the same seed."""

import pytest

from quantsr.data.splits import split
from quantsr.errors import UserError

ITEMS = [f"image {i}" for i in range(10)]


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.2, 2), (1 / 3, 3), (1, 10)])
def test_share_of_the_items_is_for_validation(share, count):
    calibration, validation = split(ITEMS, share, seed=0)
    assert len(validation) == count
    assert sorted(calibration + validation) == ITEMS


def test_order_is_kept():
    for part in split(ITEMS, 0.5, seed=0):
        assert part == sorted(part)


def test_seed_decides():
    assert split(ITEMS, 0.5, seed=0) == split(ITEMS, 0.5, seed=0) != split(ITEMS, 0.5, seed=1)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_extreme_share_leaves_no_part_empty(share):
    assert all(split(ITEMS, share, seed=0))


def test_impossible_share_is_refused():
    with pytest.raises(UserError, match=r"between 0 and 1, not 1\.5"):
        split(ITEMS, 1.5, seed=0)
