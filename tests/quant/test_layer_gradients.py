"""A layer's gradients are those of plain autograd, and little is kept for them."""

import pytest
import torch
from torch import nn

from tests.quant.layers import EVERY_LEARNER, make, train_everything


def outcome(layer, x, inputs, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    return y.detach(), *torch.autograd.grad(y, inputs, cotangent)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("input_learns", [True, False], ids=["to_input", "not_to_input"])
@EVERY_LEARNER
def test_gradients_are_those_of_plain_autograd(
    module_and_input, calibrate, monkeypatch, options, input_learns, autocast
):
    """The product that keeps its input alone against the same formulas left to autograd."""
    module, x = module_and_input
    layer = make(module, x, options, calibrate)
    inputs = train_everything(layer) + ([x.requires_grad_()] if input_learns else [])
    assert layer._learns()
    ours = outcome(layer, x, inputs, autocast)
    monkeypatch.setattr(layer, "_learns", lambda: False)
    plain = outcome(layer, x, inputs, autocast)
    for mine, theirs in zip(ours, plain, strict=True):
        tolerance = 2e-2 if autocast else 1e-4
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@EVERY_LEARNER
def test_every_parameter_gets_a_gradient(image_layer, calibrate, options):
    module, x = image_layer
    layer = make(module, x, options, calibrate)
    for gradient in outcome(layer, x, train_everything(layer))[1:]:
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_scale_and_offset_are_the_input_side_of_the_weights_gradient(image_layer, calibrate):
    """Without quantization the output does not depend on s and o, so their gradients vanish."""
    module, x = image_layer
    layer = make(module, x, {"smoothing": 0.3, "offset": True, "bits": 16}, calibrate)
    layer.input_quantizer, layer.weight_quantizer = nn.Identity(), nn.Identity()
    parameters = [layer.smoothing.scale.requires_grad_(), layer.offset.requires_grad_()]
    for gradient in torch.autograd.grad(layer(x).square().sum(), parameters):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-3)


def test_a_second_derivative_is_an_error_not_a_wrong_number(image_layer, calibrate):
    module, x = image_layer
    layer = make(module, x, {"kind": "learned"}, calibrate)
    train_everything(layer)
    (gradient,) = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "options", [{"kind": "learned"}, {"kind": "learned", "smoothing": 0.3}], ids=["bounds", "scale"]
)
def test_the_input_alone_is_kept_while_quantizers_train(module_and_input, calibrate, saved_bytes, options):
    module, x = module_and_input
    layer = make(module, x, options, calibrate)
    parameters = train_everything(layer)
    x.requires_grad_()
    assert saved_bytes(lambda: layer(x), known=(x, *parameters)) == 0


def test_one_byte_per_input_is_kept_while_only_the_input_learns(module_and_input, calibrate, saved_bytes):
    module, x = module_and_input
    layer = make(module, x, {}, calibrate)
    x.requires_grad_()
    assert saved_bytes(lambda: layer(x), known=(layer.quantized_weight(),)) == x.numel()


def test_no_copy_of_a_16_bit_weight_is_kept_while_the_offset_trains(module_and_input, calibrate, saved_bytes):
    """The gradient to o takes the weight in float32, which is made once more for the backward pass."""
    module, x = module_and_input
    layer = make(module.bfloat16(), x.bfloat16(), {"smoothing": 0.3, "offset": True}, calibrate)
    parameters = [layer.smoothing.scale.requires_grad_(), layer.offset.requires_grad_()]
    x = x.bfloat16().requires_grad_()
    response = layer._offset_response()
    plain = layer.offset_response()
    assert torch.equal(response, plain)
    gradients = (torch.autograd.grad(y.sin().sum(), layer.offset)[0] for y in (response, plain))
    assert torch.equal(*gradients)
    kept = saved_bytes(layer._offset_response, known=(*parameters, layer.weight))
    assert kept < saved_bytes(layer.offset_response, known=(*parameters, layer.weight)) - layer.weight.nbytes
