"""The weight of a layer is the module's own, never trained, and quantized once while nothing changes it."""

from copy import deepcopy

import pytest
import torch

from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import EVERY_LEARNER, FEATURES, make, recipe, train_everything


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
    "F1": lambda layer: torch.nn.init.constant_(layer.update.F1, 0.1),
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


@pytest.mark.parametrize("name", ["weight_quantizer.lower", "smoothing.scale", "low_rank.L1", "update.F1"])
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


def test_a_recipe_without_offset_has_no_offset_response(image_layer):
    module, _ = image_layer
    with pytest.raises(ValueError, match="no offset in this recipe"):
        QuantizedLayer(module, recipe()).offset_response()
