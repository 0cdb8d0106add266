import numpy as np
import pytest
import torch

from quantsr.callbacks.comparison import GAP, comparison_sheet


def versions(size=64, color=(1.0, 0.0, 0.0)):
    """An input and two results of one colour, the input four times smaller."""
    flat = torch.tensor(color).view(3, 1, 1)
    small, large = flat.expand(3, size // 4, size // 4), flat.expand(3, size, size)
    return {"lq": small, "student": large, "gt": large}


def test_all_versions_are_shown_at_one_size_on_white():
    sheet = np.asarray(comparison_sheet([versions(256), versions(256, (0, 0, 1.0))], ["a.png", "b.png"]))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 3 * 256 * 256
    assert (sheet == (0, 0, 255)).all(-1).sum() == 3 * 256 * 256
    for edge in (sheet[:GAP], sheet[-GAP:], sheet[:, :GAP], sheet[:, -GAP:]):
        assert (edge == 255).all()


def test_small_pictures_are_enlarged_by_a_whole_factor():
    sheet = np.asarray(comparison_sheet([versions(64)], ["small"]))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 3 * 256 * 256


def test_a_note_makes_room_for_itself():
    plain = comparison_sheet([versions()], ["a"])
    noted = comparison_sheet([versions()], ["a"], [{"student": "PSNR 26.31 dB, SSIM 0.7512, and more than fits"}])
    assert noted.width > plain.width
    assert noted.height > plain.height


def test_pictures_of_several_sizes_and_values_beyond_the_range():
    rows = [versions(64), {name: picture * 3 - 1 for name, picture in versions(128).items()}]
    assert comparison_sheet(rows, ["a", "b"]).mode == "RGB"


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="0 rows"):
        comparison_sheet([], [])
    with pytest.raises(ValueError, match="1 rows, 2 names"):
        comparison_sheet([versions()], ["a", "b"])
    with pytest.raises(ValueError, match="versions of the first: lq, student, gt"):
        comparison_sheet([versions(), {"gt": torch.rand(3, 8, 8)}], ["a", "b"])
