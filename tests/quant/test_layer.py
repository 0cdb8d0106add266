"""One layer for every recipe: exact without quantization, gradients of plain autograd, weights shared and cached."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from quantsr.quant.calibrate import mode
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec

ROWS = {"granularity": "channel"}


def recipe(bits: int = 4, kind: str = "minmax", act: dict | None = None, weight: dict = ROWS, **options) -> LayerRecipe:
    """Weights per row and activations per tensor unless said otherwise."""
    weight_spec = AffineSpec(bits, **{"range": kind, **weight})
    return LayerRecipe(weight_spec, AffineSpec(bits, **{"range": kind, **(act or {})}), **options)


DYNAMIC, TOKENS = {"range": "dynamic"}, {"range": "dynamic", "granularity": "token"}
FEATURES = {
    "plain": {},
    "smoothing": {"smoothing": 0.3},
    "smoothing_with_offset": {"smoothing": 0.3, "offset": True},
    "rotation": {"rotation": True},
    "low_rank": {"rank": 3},
    "channel_split": {"channel_split": True},
    "groups": {"group_size": 4},
    "bias_alignment": {"bias_alignment": True},
    "split_rotations": {"rotation": True, "channel_split": True},
    "rotation_in_groups": {"rotation": True, "group_size": 4},
    "dynamic": {"act": DYNAMIC},
    "tokens": {"act": TOKENS},
    "quantized_bias": {"quantize_bias": True},
    "all_at_once": {
        "smoothing": 0.3,
        "offset": True,
        "rotation": True,
        "rank": 2,
        "channel_split": True,
        "bias_alignment": True,
    },
}
EVERY_FEATURE = pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())


def disturb(layer: QuantizedLayer) -> QuantizedLayer:
    """Move offset and low-rank branch off their start, as training does; the layer stays exact."""
    with torch.no_grad():
        if layer.offset is not None:
            layer.offset.normal_()
        if layer.low_rank is not None:
            layer.low_rank.L1.add_(0.1 * torch.randn_like(layer.low_rank.L1))
    return layer


def make(module, x, options, calibrate, **more) -> QuantizedLayer:
    """A calibrated layer whose offset is no longer 0; ranges fit."""
    layer = QuantizedLayer(module, recipe(**{**options, **more}))
    disturb(layer)
    return calibrate(layer, x).requires_grad_(False)


def train_everything(layer: QuantizedLayer) -> list[nn.Parameter]:
    """Let all train but the module's own weight and bias."""
    parameters = [p for name, p in layer.named_parameters() if name not in ("weight", "bias")]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@pytest.fixture
def image_layer():
    """A convolution and an input, for tests that need no other kind."""
    return nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False), torch.randn(2, 8, 6, 5)


# The function.


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


# Gradients.

LEARNED = {
    "learned_bounds": {"kind": "learned"},
    "learned_steps": {"kind": "step", "weight": {**ROWS, "symmetric": True}},
    "weight_per_tensor": {"kind": "learned", "weight": {}},
    "symmetric": {"kind": "learned", "weight": {**ROWS, "symmetric": True}},
    "groups": {"kind": "learned", "group_size": 4},
    "smoothing_with_offset": {"kind": "learned", "smoothing": 0.3, "offset": True},
    "smoothing_with_offset_split": {"kind": "learned", "smoothing": 0.3, "offset": True, "channel_split": True},
    "smoothing_and_low_rank": {"kind": "learned", "smoothing": 0.3, "rank": 2},
    "smoothing_of_static_ranges": {"smoothing": 0.3, "offset": True},
    "rotation_and_low_rank": {
        "rotation": True,
        "rank": 2,
        "channel_split": True,
        "act": DYNAMIC,
        "bias_alignment": True,
    },
    "tokens_and_learned_weights": {"kind": "learned", "act": TOKENS},
    "everything": {"kind": "learned", **FEATURES["all_at_once"]},
}
EVERY_LEARNER = pytest.mark.parametrize("options", LEARNED.values(), ids=LEARNED.keys())


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


# What is kept for the backward pass.


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


# The weight: shared, and quantized once.


def test_weight_and_bias_are_the_modules_own(module_and_input, calibrate):
    module, x = module_and_input
    layer = make(module, x, FEATURES["all_at_once"], calibrate)
    assert layer.weight is module.weight
    assert layer.bias is module.bias


@EVERY_LEARNER
def test_training_touches_neither_weight_nor_bias(image_layer, calibrate, options):
    module, x = image_layer
    before = deepcopy(module.state_dict())
    layer = make(module, x, options, calibrate)
    parameters = train_everything(layer)
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - module(x)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, s) for p, s in zip(parameters, start, strict=True))
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def change(tensor):
    with torch.no_grad():
        tensor.mul_(0.5)


SOURCES = {
    "weight": lambda layer: change(layer.weight),
    "lower": lambda layer: change(layer.weight_quantizer.lower),
    "upper": lambda layer: change(layer.weight_quantizer.upper),
    "smoothing": lambda layer: change(layer.smoothing.scale),
    "L1": lambda layer: change(layer.low_rank.L1),
    "L2": lambda layer: change(layer.low_rank.L2),
    "rotation": lambda layer: layer.rotation.set_matrices([torch.eye(4), torch.eye(4)]),
    "load": lambda layer: layer.load_state_dict({k: 0.5 * v for k, v in layer.state_dict().items()}),
    "to_other_memory": lambda layer: setattr(layer.weight, "data", 0.5 * layer.weight.data),
}


@pytest.mark.parametrize("range_kind", ["minmax", "learned"])
@pytest.mark.parametrize("change_source", SOURCES.values(), ids=SOURCES.keys())
def test_the_quantized_weight_is_kept_until_something_changes_it(image_layer, calibrate, range_kind, change_source):
    module, x = image_layer
    layer = make(module, x, FEATURES["all_at_once"], calibrate, kind=range_kind)
    kept = layer.quantized_weight()
    layer(x)
    assert layer.quantized_weight() is kept
    change_source(layer)
    assert not torch.equal(layer.quantized_weight(), kept)
    assert torch.equal(layer.quantized_weight(), layer.weight_quantizer(layer.transformed_weight()))


def test_a_source_in_the_place_of_another_is_not_taken_for_it(image_layer, calibrate):
    """A new tensor may get the address of one that is gone."""
    module, x = image_layer
    layer = make(module, x, {"rotation": True}, calibrate)
    for _ in range(20):
        layer.quantized_weight()
        for _ in range(2):
            layer.rotation.set_matrices([torch.randn(8, 8)])
        assert torch.equal(layer.quantized_weight(), layer.weight_quantizer(layer.transformed_weight()))


@pytest.mark.parametrize("name", ["weight_quantizer.lower", "smoothing.scale", "low_rank.L1"])
def test_no_quantized_weight_is_kept_while_it_trains(image_layer, calibrate, name):
    module, x = image_layer
    layer = make(module, x, FEATURES["all_at_once"], calibrate, kind="learned")
    before = layer.quantized_weight()
    layer.get_parameter(name).requires_grad_(True)
    assert layer.quantized_weight().requires_grad
    assert layer.quantized_weight() is not layer.quantized_weight()
    layer.requires_grad_(False)
    assert torch.equal(layer.quantized_weight(), before)


def test_training_the_input_side_keeps_the_quantized_weight(image_layer, calibrate):
    module, x = image_layer
    layer = make(module, x, {"kind": "learned"}, calibrate)
    kept = layer.quantized_weight()
    layer.input_quantizer.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.quantized_weight() is kept


@pytest.mark.parametrize("options", [{}, FEATURES["all_at_once"]], ids=["plain", "all_at_once"])
def test_what_inference_keeps_training_can_use(image_layer, calibrate, options):
    module, x = image_layer
    layer = make(module, x, options, calibrate)
    with torch.inference_mode():
        expected = layer(x)
    y = layer(x.requires_grad_())
    y.sum().backward()
    assert torch.equal(y, expected)


def test_the_quantized_weight_does_not_depend_on_autocast(image_layer, calibrate):
    module, x = image_layer
    layer = make(module, x, FEATURES["all_at_once"], calibrate)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = layer.quantized_weight(), layer.offset_response()
    layer._cache.clear()
    for mine, expected in zip(under_autocast, (layer.quantized_weight(), layer.offset_response()), strict=True):
        assert torch.equal(mine, expected)


@EVERY_FEATURE
def test_a_frozen_layer_computes_the_same_without_its_weight(module_and_input, calibrate, options):
    module, x = module_and_input
    layer = make(module, x, options, calibrate)
    expected = layer(x)
    layer.freeze(layer.quantized_weight(), layer.offset_response() if layer.offset is not None else None)
    assert layer.weight is None
    assert not layer._cache
    assert layer.calibrated
    assert torch.equal(layer(x), expected)
    assert module.weight is not None


def test_a_recipe_without_offset_has_no_offset_response(image_layer):
    module, _ = image_layer
    with pytest.raises(ValueError, match="no offset in this recipe"):
        QuantizedLayer(module, recipe()).offset_response()
