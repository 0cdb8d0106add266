"""The formulas of affine quantization, and gradients against plain autograd and finite differences."""

import pytest
import torch
from torch import Tensor

from quantsr.quant.affine import dequantize, fake_quantize, qparams, quantize, round_through
from quantsr.quant.spec import ACT_BITS, AffineSpec

BOUNDS = {"around_zero": (-1.3, 2.1), "above_zero": (0.7, 2.9), "below_zero": (-5.0, -4.2), "wide": (-300.0, 120.0)}
SIGNS = pytest.mark.parametrize("symmetric", [False, True], ids=["unsigned", "symmetric"])
EVERY_BOUNDS = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS.keys())


def spread_between(lower: float, upper: float, n: int = 1001) -> Tensor:
    return torch.linspace(lower, upper, n)


def with_bounds(spec: AffineSpec, lower: float, upper: float) -> tuple[Tensor, Tensor, int, int]:
    scale, zero_point = qparams(torch.tensor(lower), torch.tensor(upper), spec.qmin, spec.qmax, spec.symmetric)
    return scale, zero_point, spec.qmin, spec.qmax


def plainly(x, lower, upper, spec: AffineSpec, open_ends=False) -> Tensor:
    """The formulas in plain autograd: rounding by adding a constant, the clamp by choosing."""

    def ste(t):
        return t + (t.round() - t).detach()

    if spec.symmetric:
        scale, zero_point = torch.maximum(lower.abs(), upper.abs()) / spec.qmax, torch.tensor(0.0)
    else:
        scale = (upper - lower) / (spec.qmax - spec.qmin)
        zero_point = ste(-lower / scale) + spec.qmin
    codes = ste(x / scale) + zero_point
    inside = (codes > spec.qmin) & (codes < spec.qmax) if open_ends else (codes >= spec.qmin) & (codes <= spec.qmax)
    codes = torch.where(inside, codes, codes.detach().clamp(spec.qmin, spec.qmax))
    return (codes - zero_point) * scale


# Values.


@SIGNS
@pytest.mark.parametrize("bits", [b for b in ACT_BITS if b <= 10])
def test_every_code_occurs_and_no_other(bits, symmetric):
    spec = AffineSpec(bits, symmetric)
    x = spread_between(
        -2.0, 2.0, 16 * 2**bits
    )  # The zero point is rounded: the end of a code may lie beyond its bound.
    codes = quantize(x, *with_bounds(spec, -1.0, 1.0))
    assert codes.unique().tolist() == list(range(spec.qmin, spec.qmax + 1))


@EVERY_BOUNDS
@SIGNS
@pytest.mark.parametrize("bits", ACT_BITS)
def test_codes_are_whole_and_in_range_for_any_value(bits, symmetric, bounds):
    spec = AffineSpec(bits, symmetric)
    codes = quantize(torch.randn(1000) * 1e3, *with_bounds(spec, *bounds))
    assert codes.dtype == torch.float32
    assert torch.equal(codes, codes.round())
    assert codes.min() >= spec.qmin
    assert codes.max() <= spec.qmax


@EVERY_BOUNDS
@SIGNS
@pytest.mark.parametrize("bits", ACT_BITS)
def test_inside_the_bounds_the_error_is_at_most_half_a_step(bits, symmetric, bounds):
    scale, *rest = with_bounds(AffineSpec(bits, symmetric), *bounds)
    x = spread_between(*bounds)
    error = (fake_quantize(x, scale, *rest) - x).abs().max()
    assert error <= 0.5 * scale + 1e-6 * max(map(abs, bounds))


@EVERY_BOUNDS
def test_values_outside_become_the_nearest_end(bounds):
    spec, (lower, upper) = AffineSpec(4), bounds
    x = torch.tensor([lower - 100, lower, upper, upper + 100])
    assert quantize(x, *with_bounds(spec, lower, upper)).tolist() == [0, 0, 15, 15]


@SIGNS
def test_zero_stays_zero(symmetric):
    zero = torch.zeros(1)
    assert fake_quantize(zero, *with_bounds(AffineSpec(3, symmetric), -0.9, 2.0)).item() == 0


@EVERY_BOUNDS
def test_fake_quantization_is_quantization_and_back(bounds):
    x, (scale, zero_point, qmin, qmax) = spread_between(*bounds), with_bounds(AffineSpec(4), *bounds)
    codes = quantize(x, scale, zero_point, qmin, qmax)
    x_hat = fake_quantize(x, scale, zero_point, qmin, qmax)
    assert torch.equal(x_hat, dequantize(codes, scale, zero_point))
    assert torch.equal(quantize(x_hat, scale, zero_point, qmin, qmax), codes)


@SIGNS
@pytest.mark.parametrize("value", [0.0, 3.7, -2.5, 1e-3, 1e4])
def test_a_constant_tensor_stays_itself(value, symmetric):
    x = torch.full((8,), value)
    x_hat = fake_quantize(x, *with_bounds(AffineSpec(4, symmetric), value, value))
    torch.testing.assert_close(x_hat, x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_quantized_in_float32(dtype):
    x = torch.randn(100).to(dtype)
    how = with_bounds(AffineSpec(8), -2.0, 2.0)
    assert torch.equal(fake_quantize(x, *how), fake_quantize(x.float(), *how).to(dtype))


def test_rounding_gives_whole_numbers_and_passes_the_gradient():
    x = torch.tensor([-7.4e5, -0.3, 0.2, 3.7, 1.6e6 + 0.25], requires_grad=True)
    y = round_through(x)
    y.sum().backward()
    assert torch.equal(y, x.round())
    assert torch.equal(x.grad, torch.ones(5))


# Gradients.


@pytest.mark.parametrize("per_row", [False, True], ids=["per_tensor", "per_row"])
@pytest.mark.parametrize("open_ends", [False, True], ids=["closed", "open"])
@SIGNS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_to_input_and_both_bounds_are_those_of_plain_autograd(bits, symmetric, open_ends, per_row):
    spec, rows = AffineSpec(bits, symmetric), 6 if per_row else 1
    x, cotangent = torch.randn(6, 50), torch.randn(6, 50)
    lower, upper = -0.5 - torch.rand(rows, 1), 0.5 + torch.rand(rows, 1)

    def ours(x, lower, upper):
        scale, zero_point = qparams(lower, upper, spec.qmin, spec.qmax, symmetric)
        return fake_quantize(x, scale, zero_point, spec.qmin, spec.qmax, open_ends)

    def reference(x, lower, upper):
        return plainly(x, lower, upper, spec, open_ends)

    found = []
    for function in (ours, reference):
        inputs = [t.clone().requires_grad_() for t in (x, lower, upper)]
        y = function(*inputs)
        found.append((y, *torch.autograd.grad(y, inputs, cotangent)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_are_slopes_while_rounding_errors_stand_still(bits):
    """Finite differences of the surrogate: straight-through rounding adds a rounding error that stays."""
    n, x = 2**bits - 1, torch.randn(40, dtype=torch.float64)
    lower, upper = torch.tensor(-0.83, dtype=torch.float64), torch.tensor(1.21, dtype=torch.float64)
    scale = (upper - lower) / n
    x_error, zero_error = (x / scale).round() - x / scale, (-lower / scale).round() + lower / scale

    def surrogate(x, lower, upper):
        scale = (upper - lower) / n
        zero_point = -lower / scale + zero_error
        return ((x / scale + x_error + zero_point).clamp(-1e-3, n + 1e-3) - zero_point) * scale

    inputs = [t.float().requires_grad_() for t in (x, lower, upper)]
    y = fake_quantize(inputs[0], *qparams(inputs[1], inputs[2], 0, n), 0, n)
    gradients = torch.autograd.grad(y.sum(), inputs)
    h = 1e-6
    for number, gradient in enumerate(gradients):
        steps = [h if i == number else 0 for i in range(3)]
        ahead, behind = (
            surrogate(*(t + sign * step for t, step in zip((x, lower, upper), steps, strict=True))) for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * h)
        torch.testing.assert_close(gradient, (slope if gradient.ndim else slope.sum()).float(), rtol=1e-3, atol=1e-2)


@SIGNS
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_both_extreme_codes_pass_gradient_unless_ends_are_open(bits, symmetric):
    spec = AffineSpec(bits, symmetric)
    codes = torch.tensor([spec.qmin - 1.0, spec.qmin, spec.qmin + 1, spec.qmax, spec.qmax + 1])
    for open_ends, passed in ((False, [0, 1, 1, 1, 0]), (True, [0, 0, 1, 0, 0])):
        x = codes.clone().requires_grad_()
        fake_quantize(x, torch.tensor(1.0), torch.tensor(0.0), spec.qmin, spec.qmax, open_ends).sum().backward()
        assert x.grad.tolist() == passed


@pytest.mark.parametrize("learns", ["x", "scale", "zero_point"])
def test_each_argument_can_learn_alone(learns):
    arguments = {"x": torch.randn(4, 9), "scale": torch.tensor(0.3), "zero_point": torch.tensor(2.0)}
    together = [t.clone().requires_grad_() for t in arguments.values()]
    expected = torch.autograd.grad(fake_quantize(*together, 0, 7).sum(), together)
    alone = {name: t.clone().requires_grad_(name == learns) for name, t in arguments.items()}
    (found,) = torch.autograd.grad(fake_quantize(*alone.values(), 0, 7).sum(), [alone[learns]])
    assert torch.equal(found, dict(zip(arguments, expected, strict=True))[learns])


def test_bfloat16_gradients_keep_their_types():
    x = torch.randn(64, dtype=torch.bfloat16, requires_grad=True)
    lower, upper = (torch.tensor(bound, requires_grad=True) for bound in (-1.0, 1.0))
    fake_quantize(x, *qparams(lower, upper, 0, 15), 0, 15).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert lower.grad.dtype == upper.grad.dtype == torch.float32


# What is kept for the backward pass.


def test_one_byte_per_element_is_kept_while_only_the_input_learns(saved_bytes):
    x = torch.randn(32, 100, requires_grad=True)
    assert saved_bytes(lambda: fake_quantize(x, torch.tensor(0.1), torch.tensor(3.0), 0, 15)) == x.numel()


def test_five_bytes_per_element_are_kept_while_the_range_learns(saved_bytes):
    x, scale, zero_point = (
        torch.randn(32, 100, requires_grad=True),
        torch.tensor(0.1, requires_grad=True),
        torch.zeros(()),
    )
    kept = saved_bytes(lambda: fake_quantize(x, scale, zero_point, 0, 15), known=(x, scale, zero_point))
    assert kept == 5 * x.numel()  # A mask and the slope to the scale.
