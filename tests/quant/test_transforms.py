"""Equivalent transforms: what they do to input and weight, and that the product does not notice."""

import pytest
import torch
import torch.nn.functional as F

from quantsr.quant.calibrate import settle
from quantsr.quant.operation import Operation
from quantsr.quant.parts import groups, halves
from quantsr.quant.transforms import Rotation, Smoothing, along, channel_magnitude

CUTS = {"whole": lambda c: (c,), "halves": halves, "groups_of_4": lambda c: groups(c, 4)}
EVERY_CUT = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())


def smoothing_for(module, x, alpha=0.3, **options) -> Smoothing:
    smoothing = Smoothing(module.weight.shape[1], Operation.of(module).axis, alpha, **options)
    smoothing.record(x, module.weight)
    settle(smoothing)
    return smoothing


def assert_same_product(module, x, transforms, offset=0.0):
    """operation(T(x), T(W)) equals operation(x, W) up to float error, but for what an offset takes off the input."""
    operation = Operation.of(module)
    x_t, w_t = x, module.weight
    for transform in transforms:
        x_t, w_t = transform.input(x_t), transform.weight(w_t)
    assert not torch.equal(x_t, x)
    torch.testing.assert_close(operation(x_t, w_t), operation(x - offset, module.weight), rtol=1e-4, atol=1e-4)


def test_magnitudes_are_per_channel_and_never_zero():
    x = torch.tensor([[[1.0, -3.0, 0.0]], [[2.0, 1.0, 0.0]]])
    torch.testing.assert_close(channel_magnitude(x, -1), torch.tensor([2.0, 3.0, 1e-5]))


# Smoothing.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_initial_scale_is_the_ratio_of_magnitudes(module_and_input, alpha):
    module, x = module_and_input
    axis = Operation.of(module).axis
    x_largest = x.abs().movedim(axis, 0).flatten(1).amax(1)
    w_largest = module.weight.abs().movedim(1, 0).flatten(1).amax(1)
    torch.testing.assert_close(smoothing_for(module, x, alpha).scale.detach(), (x_largest / w_largest) ** alpha)


def test_the_scale_is_a_running_average_over_batches():
    weight, smoothing = torch.ones(2, 3), Smoothing(3, -1, alpha=0.5)
    assert smoothing.momentum == 0.9
    for factor in (4.0, 100.0):
        smoothing.record(torch.full((5, 3), factor), weight)
        settle(smoothing)
    torch.testing.assert_close(smoothing.scale.detach(), torch.full((3,), 0.9 * 2 + 0.1 * 10))


def test_a_scale_is_unknown_before_calibration():
    smoothing = Smoothing(3, -1)
    assert not smoothing.calibrated
    smoothing.record(torch.randn(2, 3), torch.randn(4, 3))
    settle(smoothing)
    assert smoothing.calibrated


def test_a_scale_that_training_takes_to_zero_stops_before(module_and_input):
    module, x = module_and_input
    smoothing = smoothing_for(module, x)
    before = smoothing.scale.detach().clone()
    smoothing.keep_positive()
    assert torch.equal(smoothing.scale, before)
    with torch.no_grad():
        smoothing.scale[:3] = torch.tensor([0.0, -1e-3, -0.1])
    smoothing.keep_positive()
    assert (smoothing.scale > 0).all() and torch.equal(smoothing.scale[3:], before[3:])
    assert_same_product(module, x, [smoothing])


def test_the_offset_starts_at_zero_and_need_not_exist():
    assert torch.equal(Smoothing(3, -1).offset, torch.zeros(3))
    assert Smoothing(3, -1, offset=False).offset is None


def test_smoothing_leaves_the_product(module_and_input):
    module, x = module_and_input
    assert_same_product(module, x, [smoothing_for(module, x, offset=False)])


def test_an_offset_is_taken_off_the_input(module_and_input):
    module, x = module_and_input
    smoothing = smoothing_for(module, x)
    with torch.no_grad():
        smoothing.offset.normal_()
    assert_same_product(module, x, [smoothing], along(smoothing.offset, smoothing.axis, x.ndim))


def test_smoothing_quietens_loud_channels(module_and_input):
    module, x = module_and_input
    smoothing = smoothing_for(module, x, alpha=0.5)
    before, after = (channel_magnitude(t, smoothing.axis) for t in (x, smoothing.input(x)))
    assert after.max() / after.min() < before.max() / before.min()


# Rotation.


@EVERY_CUT
def test_rotation_leaves_the_product(module_and_input, cut):
    module, x = module_and_input
    assert_same_product(module, x, [Rotation(cut(module.weight.shape[1]), Operation.of(module).axis)])


@EVERY_CUT
def test_smoothing_and_rotation_together_leave_the_product(module_and_input, cut):
    module, x = module_and_input
    rotation = Rotation(cut(module.weight.shape[1]), Operation.of(module).axis)
    assert_same_product(module, x, [smoothing_for(module, x, offset=False), rotation])


@pytest.mark.parametrize("sizes", [(2,), (7,), (20,), (64,), (3, 4), (12, 12, 5), (320,)], ids=str)
def test_the_rotation_is_orthogonal_in_blocks_and_never_the_identity(sizes):
    channels = sum(sizes)
    matrix = Rotation(sizes, axis=-1).input(torch.eye(channels))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(channels), rtol=0, atol=1e-5)
    start = 0
    for size in sizes:
        block = matrix[start : start + size, start : start + size]
        torch.testing.assert_close(block @ block.T, torch.eye(size), rtol=0, atol=1e-5)
        assert (block - torch.eye(size)).abs().max() > 0.1
        start += size


def test_rotations_are_random_but_repeatable():
    x = torch.randn(3, 64)
    first, again, other = (Rotation((64,), -1, seed).input(x) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize(("size", "stored"), [(64, (64,)), (320, (320,)), (7, (7, 7))])
def test_a_hadamard_rotation_stores_its_signs_alone(size, stored):
    assert Rotation((size,), -1).rotation_0.shape == stored


@pytest.mark.parametrize("size", [64, 20, 50])
def test_rotation_spreads_an_outlier_over_all_channels(size):
    x = F.one_hot(torch.tensor([1]), size).float()
    assert Rotation((size,), -1).input(x).abs().max() < 0.75


def test_given_matrices_replace_the_drawn_ones():
    rotation = Rotation((4, 2), -1)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    rotation.set_matrices([torch.eye(4), swap])
    assert rotation.input(torch.arange(6.0)[None]).tolist() == [[0, 1, 2, 3, 5, 4]]


def test_rotated_weights_do_not_depend_on_autocast():
    rotation, w = Rotation((20, 7), 1), torch.randn(4, 27, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rotated = rotation.weight(w)
    assert torch.equal(rotated, rotation.weight(w))


def test_whole_matrices_load_where_signs_would_be():
    """Of students that others calibrated: their Hadamard matrices are not ours."""
    given, loaded = Rotation((8, 8), axis=-1), Rotation((8, 8), axis=-1, seed=1)
    given.set_matrices([torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2)])
    loaded.load_state_dict(given.state_dict())
    x = torch.randn(3, 16)
    torch.testing.assert_close(loaded.input(x), given.input(x))
