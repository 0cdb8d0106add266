"""GPTQ: never worse than the nearest on what it saw, and the same codes as an elimination of one weight at a time."""

import pytest
import torch
from torch import Tensor

from quantsr.quant.gptq import BLOCK, patches, round_layer, round_weight, second_moment
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.operation import Operation
from tests.quant.layers import TOKENS, recipe

SYMMETRIC = {"granularity": "channel", "symmetric": True}


def correlated(positions: int, n: int) -> Tensor:
    """Inputs ``(positions, n)`` whose columns know of each other."""
    return torch.randn(positions, n, dtype=torch.float64) @ torch.randn(n, n, dtype=torch.float64)


def nearest(w: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return ((w / scale).round() + zero_point).clamp(qmin, qmax)


def by_elimination(w, hessian, scale, zero_point, qmin, qmax, damping):
    """Optimal Brain Quantization in a fixed order: one row and one column at a time, the inverse updated each time."""
    h = hessian.double() + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    codes = torch.zeros_like(w)
    for row in range(len(w)):
        left, inverse = w[row].clone(), torch.linalg.inv(h)
        for i in range(len(left)):
            s, z = scale[row, i], zero_point[row, i]
            codes[row, i] = ((left[i] / s).round() + z).clamp(qmin, qmax)
            error = left[i] - (codes[row, i] - z) * s
            left = left - error / inverse[i, i] * inverse[i]
            inverse = inverse - torch.outer(inverse[i], inverse[i]) / inverse[i, i]
            inverse[i, i] = 1.0  # It is done with: its row and column are 0, and this keeps the division defined.
    return codes


@pytest.fixture
def problem():
    w = torch.randn(5, 12, dtype=torch.float64)
    x = correlated(200, 12)
    scale = (w.abs().amax(1, keepdim=True) / 3).expand_as(w)
    return w, x, scale, torch.full_like(w, 1.0), -3, 4


def test_codes_are_those_of_a_naive_elimination(problem):
    w, x, *grid = problem
    expected = by_elimination(w, x.T @ x, *grid, damping=0.01)
    assert torch.equal(round_weight(w, x.T @ x, *grid).double(), expected)
    assert not torch.equal(expected, nearest(w, *grid))


def test_uncorrelated_inputs_leave_rounding_to_the_nearest(problem):
    w, _, *grid = problem
    assert torch.equal(round_weight(w, torch.eye(12), *grid).double(), nearest(w, *grid))


def test_the_scale_of_the_second_moment_does_not_matter(problem):
    w, x, *grid = problem
    assert torch.equal(round_weight(w, x.T @ x, *grid), round_weight(w, 1e4 * x.T @ x, *grid))


def test_blocks_of_columns_change_no_code(problem, monkeypatch):
    n = 2 * BLOCK + 7
    w, x = torch.randn(3, n, dtype=torch.float64), correlated(400, n)
    grid = (torch.full((3, n), 0.4), torch.zeros(3, n), -4, 3)
    whole = round_weight(w, x.T @ x, *grid)
    monkeypatch.setattr("quantsr.quant.gptq.BLOCK", 10 * n)
    assert torch.equal(round_weight(w, x.T @ x, *grid), whole)


def test_a_channel_without_input_is_rounded_to_the_nearest(problem):
    w, x, *grid = problem
    x[:, 4] = 0
    codes = round_weight(w, x.T @ x, *grid).double()
    assert torch.equal(codes[:, 4], nearest(w, *grid)[:, 4])
    assert codes.isfinite().all()


def test_patches_times_the_weight_are_the_layers_output(module_and_input):
    module, x = module_and_input
    operation = Operation.of(module)
    product = patches(operation, x, module.weight.shape[2:]) @ module.weight.flatten(1).T
    y = operation(x, module.weight)
    rows = y.flatten(0, -2) if operation.kind == "Linear" else y.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(product, rows, atol=1e-4, rtol=1e-4)


def test_the_second_moment_does_not_depend_on_autocast(module_and_input, calibrate):
    module, x = module_and_input
    layer = calibrate(QuantizedLayer(module, recipe(3, rounding="stored", act=TOKENS)), x)
    with torch.autocast("cpu", torch.bfloat16):
        found = second_moment(layer, x)
    assert found.dtype == torch.float32 and torch.equal(found, second_moment(layer, x))


@pytest.mark.parametrize(
    "options",
    [
        {"weight": SYMMETRIC},
        {},
        {"group_size": 4},
        {"rotation": True},
        {"smoothing": 0.3, "rank": 2},
        {"weight": {}},
    ],
    ids=["symmetric", "asymmetric", "groups", "rotation", "smoothing_and_branch", "per_tensor"],
)
def test_the_output_is_nearer_than_with_rounding_to_the_nearest(module_and_input, calibrate, options):
    module, x = module_and_input
    x = torch.cat([x, x.roll(1, -1) + 0.5 * x, x + 0.1 * torch.randn_like(x)])
    layer = QuantizedLayer(module, recipe(3, rounding="stored", act=TOKENS, **options))
    calibrate(layer, x)
    with torch.no_grad():
        inputs, w = layer.transformed_input(x), layer.transformed_weight()

        def error() -> float:
            difference = layer.operation(inputs, layer.quantized_weight()) - layer.operation(inputs, w)
            return difference.square().sum().item()

        before = error()
        round_layer(layer, second_moment(layer, x))
        assert error() < before


def test_a_layer_that_stores_no_codes_is_refused(image_layer, calibrate):
    module, x = image_layer
    layer = calibrate(QuantizedLayer(module, recipe(3)), x)
    with pytest.raises(ValueError, match="rounding='stored'"):
        round_layer(layer, torch.eye(72))
