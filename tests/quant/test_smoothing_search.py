"""SVDQuant's search for one layer: what is tried, that the layer's own output decides, and that it stays exact."""

import pytest
import torch

from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.smoothing_search import (
    before_first_rise,
    branch_candidates,
    exponents,
    least,
    output_errors,
    put,
    smoothing_candidates,
)
from quantsr.quant.transforms import channel_magnitude
from tests.quant.layers import TOKENS, recipe

GRID = 5
SMOOTH = {"smoothing": 1.0, "smoothing_weight": 0.0, "act": TOKENS}


def build(module, x, calibrate, bits: int = 4, **options) -> QuantizedLayer:
    """A layer with a branch of rank 2 whose smoothing scale is max|x|."""
    layer = QuantizedLayer(module, recipe(bits, **SMOOTH, rank=2, **options))
    return calibrate(layer, x)


def test_no_smoothing_and_two_lines_of_exponents_are_tried():
    assert exponents(4) == [(0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
    assert len(exponents(20)) == 39


def test_candidates_follow_from_the_largest_inputs_and_weights(module_and_input, calibrate):
    module, x = module_and_input
    layer = build(module, x, calibrate)
    largest = channel_magnitude(x, layer.operation.axis), channel_magnitude(module.weight, 1)
    torch.testing.assert_close(layer.smoothing.scale.detach(), largest[0])
    for candidate, (alpha, beta) in zip(smoothing_candidates(layer, GRID), exponents(GRID), strict=True):
        torch.testing.assert_close(candidate.scale, largest[0] ** alpha / largest[1] ** beta)


def test_the_branch_takes_the_largest_singular_values_of_the_smoothed_weight(module_and_input, calibrate):
    """What is left for the low bits has the others: its largest is the (r + 1)-th of the whole (Eckart-Young)."""
    module, x = module_and_input
    layer = build(module, x, calibrate)
    for candidate in smoothing_candidates(layer, GRID)[::3]:
        put(layer, candidate)
        smoothed = layer.smoothing.weight(module.weight).flatten(1)
        whole, left = (torch.linalg.svdvals(w) for w in (smoothed, layer.transformed_weight().flatten(1)))
        torch.testing.assert_close(left[: len(whole) - 2], whole[2:], atol=1e-4, rtol=1e-4)
        assert left[0] < 0.999 * whole[0]


def test_the_layer_is_exact_with_any_candidate(module_and_input, calibrate):
    """But for rounding, which 8 bits and 16 leave little of."""
    module, x = module_and_input
    layer = build(module, x, calibrate, bits=8)
    target = module(x)
    for candidate in smoothing_candidates(layer, GRID):
        put(layer, candidate)
        with torch.no_grad():
            exact = layer.operation(layer.transformed_input(x), layer.transformed_weight(), layer.bias)
            branch = layer.operation.pointwise(layer.operation(x, layer.low_rank.down), layer.low_rank.up)
        torch.testing.assert_close(exact + branch, target, atol=2e-4, rtol=1e-3)


def test_errors_are_those_of_the_layer_and_leave_it_as_it_was(module_and_input, calibrate):
    module, x = module_and_input
    layer = build(module, x, calibrate)
    layer.mode = "full_precision"
    candidates = smoothing_candidates(layer, GRID)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    errors = output_errors(layer, candidates, x)
    assert layer.mode == "full_precision"
    # The range of the weight was that of the unsmoothed branch; it follows from the parts as they are.
    assert all(torch.equal(before[n], t) for n, t in layer.state_dict().items() if "weight_quantizer" not in n)
    layer.mode = "quantized"
    for candidate, error in zip(candidates, errors, strict=True):
        put(layer, candidate)
        with torch.no_grad():
            own = (layer(x) - module(x)).double().square().sum()
        torch.testing.assert_close(own, error)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [None, 4])
def test_the_search_is_never_worse_than_no_smoothing(module_and_input, calibrate, bits, group_size):
    module, x = module_and_input
    layer = build(module, x, calibrate, bits, group_size=group_size)
    errors = output_errors(layer, smoothing_candidates(layer, GRID), x)
    assert errors[least(errors)] <= errors[0]


def test_an_outlier_channel_is_moved_into_the_weight(calibrate):
    module = torch.nn.Linear(64, 48).requires_grad_(False)
    x = torch.randn(500, 64)
    x[:, 7] *= 60
    layer = build(module, x, calibrate)
    candidates = smoothing_candidates(layer, 10)
    errors = output_errors(layer, candidates, x)
    best = least(errors)
    assert errors[best] < 0.5 * errors[0]
    put(layer, candidates[best])

    def spread(t: torch.Tensor) -> float:
        return (channel_magnitude(t, 1).max() / channel_magnitude(t, 1).median()).item()

    with torch.no_grad():
        assert spread(layer.smoothing.input(x)) < 0.5 * spread(x)
        assert channel_magnitude(layer.smoothing.weight(module.weight), 1).argmax() == 7


def test_the_branch_is_fitted_again_to_what_quantization_left(calibrate):
    """Each next branch is the SVD of W - Q(W - L), and on a plain weight the first of them helps."""
    module = torch.nn.Linear(32, 24).requires_grad_(False)
    x = torch.randn(300, 32)
    layer = build(module, x, calibrate, bits=3)
    put(layer, smoothing_candidates(layer, GRID)[0])
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    candidates = branch_candidates(layer, 4)
    assert len(candidates) == 4
    assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
    put(layer, candidates[0])
    rest = (layer.smoothing.weight(module.weight) - layer.quantized_weight()).detach()
    u, s, vh = torch.linalg.svd(rest)
    torch.testing.assert_close(candidates[1].L1 @ candidates[1].L2, (u[:, :2] * s[:2]) @ vh[:2], atol=1e-4, rtol=1e-3)
    errors = output_errors(layer, candidates, x)
    assert errors[before_first_rise(errors)] <= errors[0]


@pytest.mark.parametrize(
    ("errors", "expected"), [([3, 2, 1], 2), ([3, 2, 4, 1], 1), ([1, 2, 0], 0), ([5.0], 0), ([2, 2, 1], 2)]
)
def test_iterations_stop_before_the_first_rise(errors, expected):
    assert before_first_rise(torch.tensor(errors)) == expected


@pytest.mark.parametrize("options", [{"rank": 2}, {"smoothing": 1.0, "act": TOKENS}, {"smoothing": 1.0, "rank": 2}])
def test_a_layer_without_the_parts_is_refused(image_layer, calibrate, options):
    module, x = image_layer
    layer = calibrate(QuantizedLayer(module, recipe(4, **options)), x)
    with pytest.raises(ValueError, match="the search needs smoothing, a branch and dynamic inputs"):
        smoothing_candidates(layer, 4)
