"""One layer for every recipe: exact without quantization, and each part of a recipe does what it is for."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from quantsr.quant.calibrate import mode
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import DYNAMIC, EVERY_FEATURE, FEATURES, make, recipe


@EVERY_FEATURE
def test_without_quantization_the_layer_is_the_module(module_and_input, calibrate, options):
    """16 bits stand for no quantization; padding, strides and dilation are those of the modules."""
    module, x = module_and_input
    y, expected = make(module, x, options, calibrate, bits=16)(x), module(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@EVERY_FEATURE
def test_the_transformed_product_is_the_product(module_and_input, calibrate, options):
    """T(x) * T(W - L1 L2) + W * o + L1 (L2 x) + b, with no quantizer at all."""
    module, x = module_and_input
    layer = make(module, x, {**options, "quantize_bias": False}, calibrate)
    layer.input_quantizer, layer.weight_quantizer = nn.Identity(), nn.Identity()
    torch.testing.assert_close(layer(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("observation", ["full_precision", "observe_smoothing", "observe_ranges"])
def test_other_modes_compute_exactly_what_the_module_does(module_and_input, calibrate, observation):
    module, x = module_and_input
    layer = make(module, x, FEATURES["all_at_once"], calibrate)
    with mode(layer, observation):
        assert torch.equal(layer(x), module(x))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_every_row_of_the_weight_has_as_many_levels_as_its_bits_allow(calibrate, bits):
    layer = make(nn.Linear(2000, 3), torch.randn(2, 2000), {}, calibrate, bits=bits)
    for row in layer.quantized_weight():
        assert 2**bits - 1 <= len(row.unique()) <= 2**bits


@pytest.mark.parametrize("options", [{}, {"act": DYNAMIC}], ids=["static", "dynamic"])
def test_the_channel_split_is_two_independent_layers(module_and_input, calibrate, options):
    module, x = module_and_input
    layer = make(module, x, options, calibrate, channel_split=True)
    axis, half = layer.operation.axis, module.weight.shape[1] // 2
    y = 0.0
    for part in (slice(None, half), slice(half, None)):
        alone, channels = deepcopy(module), range(module.weight.shape[1])[part]
        alone.weight, alone.bias = nn.Parameter(module.weight[:, part].clone(), requires_grad=False), None
        piece = x.narrow(axis, channels.start, len(channels))
        y = y + make(alone, piece, options, calibrate)(piece)
    if module.bias is not None:
        y = y + module.bias.reshape([-1 if d == axis % y.ndim else 1 for d in range(y.ndim)])
    torch.testing.assert_close(layer(x), y)


def test_an_offset_makes_room_for_a_shifted_input(calibrate):
    """What smoothing with an offset is for: more of the codes are used, and the error falls."""
    module, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(64, 8) + 10 * torch.randn(8)
    errors = []
    for offset in (torch.zeros(8), x.mean(0)):
        layer = QuantizedLayer(module, recipe(smoothing=0.0, offset=True))
        with torch.no_grad():
            layer.offset.copy_(offset)
        errors.append((calibrate(layer, x)(x) - module(x)).square().mean().item())
    assert errors[1] < errors[0] / 4


def test_bias_alignment_adds_a_constant_to_every_output_channel(image_layer, calibrate):
    module, x = image_layer
    layer = make(module, x, {"bias_alignment": True}, calibrate)
    before, shift = layer(x), torch.randn(6)
    with torch.no_grad():
        layer.bias_alignment.copy_(shift)
    torch.testing.assert_close(layer(x), before + shift[:, None, None])


def test_the_bias_is_quantized_on_request_only(image_layer, calibrate):
    module, x = image_layer
    assert torch.equal(make(module, x, {}, calibrate, bits=2).constant(), module.bias)
    assert len(make(module, x, {"quantize_bias": True}, calibrate, bits=2).constant().unique()) <= 4


def test_two_layers_of_one_seed_are_the_same(image_layer, calibrate):
    module, x = image_layer
    first, again = (make(module, x, {"rotation": True}, calibrate)(x) for _ in range(2))
    other = calibrate(QuantizedLayer(module, recipe(rotation=True), seed=1), x)(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@EVERY_FEATURE
def test_the_state_makes_an_equal_layer(image_layer, calibrate, options):
    module, x = image_layer
    layer = make(module, x, options, calibrate)
    fresh = QuantizedLayer(deepcopy(module), layer.recipe, seed=1)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.calibrated
    assert torch.equal(fresh(x), layer(x))


def test_an_uncalibrated_layer_says_so(image_layer, calibrate):
    module, x = image_layer
    layer = QuantizedLayer(module, recipe(smoothing=0.3))
    assert not layer.calibrated
    assert calibrate(layer, x).calibrated


def test_autocast_gives_the_type_of_the_module(module_and_input, calibrate):
    module, x = module_and_input
    layer = make(module, x, FEATURES["all_at_once"], calibrate)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), module(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.1, atol=0.05 * float(expected.abs().max()))
