"""The dual-branch layer's own gradients are those of its formula left to autograd, clamped weights included."""

import pytest
import torch

from quantsr.quant import refinement
from quantsr.quant.affine import round_through
from quantsr.quant.operation import Operation
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec
from tests.quant.layers import DYNAMIC, TOKENS, make, recipe

QUANTVSR = {"act": DYNAMIC, "rotation": True, "rank": 3, "channel_split": True, "bias_alignment": True}
OPTIONS = {
    "quantvsr": QUANTVSR,
    "without_rotation": {**QUANTVSR, "rotation": False},
    "whole": {**QUANTVSR, "channel_split": False},
    "tokens": {**QUANTVSR, "act": TOKENS},
    "symmetric": {**QUANTVSR, "weight": {"granularity": "channel", "symmetric": True}},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
WEIGHTS = {"as_calibrated": 0.0, "few_clamped": 0.02, "many_clamped": 0.4}


def formula(layer, x):
    """y = Qa(T(x)) * Qw(T(W - L1 L2)) + (L1 L2) * x + b + b_align, in differentiable operations."""
    product = (layer.low_rank.L1 @ layer.low_rank.L2).view_as(layer.weight)
    residual = layer.weight - product
    rotated = residual if layer.rotation is None else layer.rotation.weight(residual)
    scale, zero_point = layer.weight_quantizer.qparams(rotated)
    spec = layer.recipe.weight
    inside = ((rotated / scale).round() + zero_point).clamp(spec.qmin, spec.qmax)
    codes = round_through(rotated / scale) + zero_point
    # Where a code is clamped, no gradient; both extreme codes themselves pass it.
    w_hat = (torch.where(inside == codes, codes, inside.detach()) - zero_point) * scale
    y = layer.operation(layer.input_quantizer(layer.transformed_input(x)), w_hat)
    y = y + layer.operation(x, product)
    constant = layer.bias_alignment if layer.bias is None else layer.bias + layer.bias_alignment
    return y + constant.reshape([-1 if d == layer.operation.axis % y.ndim else 1 for d in range(y.ndim)])


def refining(module, x, calibrate, options, drift=0.0):
    """A layer whose branch trains, after the branch has moved by ``drift`` since calibration."""
    layer = make(module, x, options, calibrate)
    with torch.no_grad():
        for parameter in layer.low_rank.parameters():
            parameter.add_(drift * torch.randn_like(parameter))
        layer.bias_alignment.normal_()
    parameters = [*layer.low_rank.parameters(), layer.bias_alignment]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return layer, parameters


def outcome(function, x, inputs):
    y = function(x)
    cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, inputs, cotangent)


def clamped_share(layer):
    w = layer.transformed_weight().detach()
    return len(layer.weight_quantizer.quantize_and_find_clamped(w)[1]) / w.numel()


@pytest.mark.parametrize("drift", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("few", [0.0, 1.0], ids=["whole_gradient", "one_by_one"])
@EVERY_OPTION
def test_output_and_gradients_are_those_of_the_formula(module_and_input, calibrate, monkeypatch, options, few, drift):
    module, x = module_and_input
    monkeypatch.setattr(refinement, "FEW", few)
    layer, parameters = refining(module, x, calibrate, options, drift)
    assert refinement.applies(layer.recipe)
    if drift > 0.1:
        assert clamped_share(layer) > 0.01
    inputs = [*parameters, x.requires_grad_()]
    for mine, theirs in zip(outcome(layer, x, inputs), outcome(lambda t: formula(layer, t), x, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_gradients_under_autocast_are_close_to_those_without(module_and_input, calibrate):
    module, x = module_and_input
    layer, parameters = refining(module, x, calibrate, {**QUANTVSR, "bits": 8}, drift=0.02)
    inputs = [*parameters, x.requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    mine = torch.autograd.grad(y, inputs, cotangent.to(y.dtype))
    theirs = torch.autograd.grad(layer(x), inputs, cotangent)
    for a, b, t in zip(mine, theirs, inputs, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05 * float(b.abs().max()))


def test_channels_last_changes_nothing(image_layer, calibrate):
    module, x = image_layer
    layer, _ = refining(module, x, calibrate, {**QUANTVSR, "rotation": False})
    expected = layer(x)
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("drift", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_folded_layer_has_the_same_codes(image_layer, calibrate, drift):
    module, x = image_layer
    layer, _ = refining(module, x, calibrate, QUANTVSR, drift)
    w = layer.transformed_weight()
    layer.requires_grad_(False)
    assert torch.equal(layer.weight_quantizer.quantize(layer.transformed_weight()), layer.weight_quantizer.quantize(w))


def test_while_the_branch_trains_the_rotated_weight_is_kept_and_else_the_effective_one(image_layer, calibrate):
    module, x = image_layer
    layer, _ = refining(module, x, calibrate, QUANTVSR)
    layer(x)
    assert set(layer._cache) == {"transformed"}
    layer.low_rank.requires_grad_(False)
    layer(x)
    assert set(layer._cache) == {"effective"}


def test_a_step_of_the_branch_changes_the_output(image_layer, calibrate):
    module, x = image_layer
    layer, parameters = refining(module, x, calibrate, QUANTVSR)
    before = layer(x)
    torch.optim.SGD(parameters, 0.1).zero_grad()
    before.square().sum().backward()
    torch.optim.SGD(parameters, 0.01).step()
    assert not torch.equal(layer(x), before)
    torch.testing.assert_close(layer(x), formula(layer, x), rtol=1e-4, atol=1e-4)


def test_a_change_between_forward_and_backward_is_noticed(image_layer, calibrate):
    module, x = image_layer
    layer, _ = refining(module, x, calibrate, QUANTVSR)
    y = layer(x)
    with torch.no_grad():
        layer.low_rank.L1.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_input_is_kept_while_the_branch_trains_and_nothing_else(image_layer, calibrate, saved_bytes):
    module, x = image_layer
    layer, parameters = refining(module, x.requires_grad_(), calibrate, QUANTVSR)
    thin = 4 * 3 * x[:, 0].numel()  # d, with the r = 3 channels of the branch.
    assert saved_bytes(lambda: layer(x), known=(x, *parameters)) == 4 * x.numel() + thin
    layer.low_rank.requires_grad_(False)
    assert saved_bytes(lambda: layer(x), known=(x, *parameters)) == 0


def test_single_gradients_of_a_weight_are_entries_of_the_whole_one(module_and_input):
    module, x = module_and_input
    operation = Operation.of(module)
    grad = torch.randn_like(module(x))
    whole = operation.gradients(grad, x, module.weight, (False, True))[1]
    entries = (torch.rand(module.weight.shape) < 0.3).nonzero()
    found = operation.single_weight_gradients(grad, x, module.weight.shape, entries)
    torch.testing.assert_close(found, whole[tuple(entries.T)], rtol=1e-4, atol=1e-4)


WEIGHT = AffineSpec(4, granularity="channel")
OTHERS = {
    "static_input": recipe(rank=2),
    "no_branch": recipe(act=DYNAMIC),
    "smoothing": recipe(act=DYNAMIC, rank=2, smoothing=0.3),
    "learned_weight": recipe(kind="learned", act=DYNAMIC, rank=2),
    "update": recipe(act=DYNAMIC, rank=2, update_rank=2),
    "as_released": LayerRecipe(WEIGHT, AffineSpec(4, range="dynamic", as_released=True), rank=2),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_other_recipes_have_another_form(other):
    assert not refinement.applies(other)
