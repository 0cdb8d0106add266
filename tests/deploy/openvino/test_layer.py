"""A layer's OpenVINO operations compute what its inference form computes, and the plugin does it in integers."""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from torch import nn

from quantsr.deploy.openvino.layer import integer_weights, layer_output, why_not
from quantsr.deploy.openvino.networks import compile_model
from quantsr.deploy.openvino.overflow import largest_weight, overflows
from quantsr.deploy.openvino.packed import expand
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import FEATURES, LEARNED, make, recipe

SYMMETRIC_TOKENS = {"act": {"range": "dynamic", "granularity": "token", "symmetric": True, "ratio": 0.9}}
RECIPES = {
    **{f"static_{name}": options for name, options in FEATURES.items()},
    **{f"learned_{name}": options for name, options in LEARNED.items()},
    "cut": {"cut": 4},
    "symmetric_tokens": SYMMETRIC_TOKENS,
}


def compiled(layer: FoldedLayer, x: torch.Tensor) -> ov.CompiledModel:
    """The layer alone, in float32 around the integers."""
    parameter = op.parameter([-1] * x.ndim, np.float32)
    parameter.set_partial_shape(ov.PartialShape([-1, *x.shape[1:]]))
    model = ov.Model([layer_output(layer, parameter.output(0))], [parameter])
    expand(model, largest_weight())
    return compile_model(model, [x.shape], "f32")


def products(model: ov.CompiledModel) -> list[str]:
    """Primitives of the products that the plugin runs."""
    info = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    kinds = ("Convolution", "FullyConnected", "MatMul")
    return [i["primitiveType"].astype(str).upper() for i in info if i["layerType"].astype(str) in kinds]


def assert_same(layer: FoldedLayer, x: torch.Tensor) -> None:
    y, expected = torch.from_numpy(compiled(layer, x)(x.numpy())[0]), layer(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_every_recipe_on_every_kind_of_layer(module_and_input, calibrate, options):
    module, x = module_and_input
    layer = FoldedLayer.of(make(module, x, options, calibrate))
    assert_same(layer, x)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True], ids=["zero_points", "symmetric"])
def test_all_bits(module_and_input, calibrate, bits, symmetric):
    module, x = module_and_input
    weight = {"granularity": "channel", "symmetric": symmetric}
    assert_same(FoldedLayer.of(make(module, x, {"weight": weight}, calibrate, bits=bits)), x)


def test_the_released_codes_smallest_scale_is_kept(calibrate):
    """Of inputs so small that it counts."""
    options = {"act": {"range": "dynamic", "as_released": True}, "weight": {"granularity": "channel"}}
    x = 2e-3 * torch.randn(1, 16, 8, 8)
    assert_same(FoldedLayer.of(make(nn.Conv2d(16, 8, 1).requires_grad_(False), x, options, calibrate, bits=8)), x)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["linear", "1x1", "3x3", "strided"])
def test_the_plugin_multiplies_integers(calibrate, kind, bits):
    """Large enough that it is worth its while; of 8 bits where the processor can."""
    if bits == 8 and overflows():
        pytest.skip("no integer products of 8 bits on this processor")
    module, shape = {
        "linear": (nn.Linear(64, 48), (1, 40, 64)),
        "1x1": (nn.Conv2d(64, 48, 1), (1, 64, 16, 16)),
        "3x3": (nn.Conv2d(64, 48, 3, padding=1), (1, 64, 16, 16)),
        "strided": (nn.Conv2d(64, 48, 3, padding=1, stride=2), (1, 64, 16, 16)),
    }[kind]
    x = torch.randn(shape)
    layer = FoldedLayer.of(make(module.requires_grad_(False), x, {}, calibrate, bits=bits))
    assert why_not(layer) is None
    found = products(compiled(layer, x))
    # What is added for rows of 8 bits is summed over the window in floating point, in one channel.
    floating = [primitive for primitive in found if not primitive.endswith("I8")]
    assert len(found) > len(floating) == (bits == 8 and kind in ("3x3", "strided"))


def test_a_scale_per_position_stays_in_floating_point(calibrate):
    """Under a 3x3 kernel; under a 1x1 kernel a position is a row of the product."""
    for size, integers in ((3, False), (1, True)):
        module, x = nn.Conv2d(64, 48, size, padding=size // 2).requires_grad_(False), torch.randn(1, 64, 16, 16)
        layer = FoldedLayer.of(make(module, x, FEATURES["tokens"], calibrate, bits=6))
        assert (why_not(layer) is None) == integers
        assert next(primitive.endswith("I8") for primitive in products(compiled(layer, x))) == integers


def test_wide_activations_stay_in_floating_point(calibrate):
    module, x = nn.Linear(8, 6).requires_grad_(False), torch.randn(3, 8)
    layer = FoldedLayer.of(calibrate(QuantizedLayer(module, recipe(8).with_bits(8, 16)), x))
    assert why_not(layer) == "activations of 16 bits"
    assert_same(layer, x)


@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_weights_fit_and_stand_for_the_weight(calibrate, bits):
    module, x = nn.Conv2d(12, 6, 3).requires_grad_(False), torch.randn(1, 12, 5, 5)
    with torch.no_grad():
        module.weight[0].abs_()  # A row whose zero point is at the end of the codes.
    layer = FoldedLayer.of(make(module, x, {"channel_split": True}, calibrate, bits=bits))
    parts = integer_weights(layer)
    torch.testing.assert_close(torch.cat([part.values() for part in parts], 1), layer.weight)
    for part in parts:
        integers = part.codes - part.zero_point.view(-1, 1, 1, 1)
        assert integers.min() >= -128 and integers.max() <= 127
        assert bits > 6 or not part.shift.any()
