"""Windows see what torch's convolutions see."""

import pytest
import torch
import torch.nn.functional as F

from quantsr.kernels import Window
from tests.kernels.operands import WINDOWS

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
EVERY_WINDOW = pytest.mark.parametrize(("window", "positions"), WINDOWS.values(), ids=WINDOWS.keys())
CUBE = Window((3, 3, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("window", "positions"),
    [*(case for case in WINDOWS.values() if case[0].kernel), (CUBE, (1, 4, 5, 3))],
    ids=str,
)
def test_the_sum_over_views_is_a_convolution(window, positions):
    x, w = torch.randn(*positions, 2, dtype=torch.float64), torch.randn(3, window.taps, 2, dtype=torch.float64)
    found = sum(view @ w[:, tap].T for tap, view in enumerate(window.views(x)))
    kernel = w.mT.reshape(3, 2, *window.kernel)
    convolve = CONVOLVE[len(window.kernel)]
    expected = convolve(x.movedim(-1, 1), kernel, None, window.stride, window.padding, window.dilation)
    torch.testing.assert_close(found.movedim(-1, 1), expected)
    assert window.output(positions[1:]) == expected.shape[2:]


def test_a_linear_layer_sees_its_input():
    x = torch.randn(4, 3)
    (view,) = Window().views(x)
    assert view is x and Window().taps == 1 and Window().pointwise


def test_which_windows_are_pointwise():
    assert {name for name, (window, _) in WINDOWS.items() if window.pointwise} == {"linear", "conv1x1"}


def test_windows_of_one_axis_and_over_time_are_planar():
    line, _ = WINDOWS["conv1d"]
    assert line.planar((7,)) == (Window((1, 3), (1, 2), (0, 1), (1, 1)), (1, 7))
    time, _ = WINDOWS["conv3d_over_time"]
    assert time.planar((4, 2, 3)) == (Window((3, 1), (1, 1), (1, 0), (1, 1)), (4, 6))
    assert CUBE.planar((4, 5, 3)) is None
