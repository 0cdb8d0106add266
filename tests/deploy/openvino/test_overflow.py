"""Where sums of 8-bit products saturate, such products are computed in floating point, and give what they should."""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from torch import nn

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.overflow import FLOATING_LEVELS, LARGEST, LARGEST_IN_PAIRS, avoid_overflow, largest_weight
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.spec import AffineSpec
from tests.deploy.openvino import test_attention as attention
from tests.deploy.openvino.test_layer import assert_same, compiled, products
from tests.quant.layers import make


@pytest.fixture
def overflowing(monkeypatch):
    """A processor without instructions for sums in 32 bits."""
    monkeypatch.setattr("quantsr.deploy.openvino.overflow.overflows", lambda: True)


def test_the_largest_weight_is_the_largest_that_fits(monkeypatch):
    assert 2 * 255 * LARGEST_IN_PAIRS < 2**15 <= 2 * 255 * (LARGEST_IN_PAIRS + 1)
    for found, largest in ((False, LARGEST), (True, LARGEST_IN_PAIRS)):
        monkeypatch.setattr("quantsr.deploy.openvino.overflow.overflows", lambda found=found: found)
        assert largest_weight() == largest


@pytest.mark.parametrize(("bits", "integers"), [(4, True), (6, True), (8, False)])
def test_layers_of_8_bits_are_floating(overflowing, calibrate, bits, integers):
    module, x = nn.Linear(64, 48).requires_grad_(False), torch.randn(1, 40, 64)
    weight = {"granularity": "channel", "symmetric": True}
    layer = FoldedLayer.of(make(module, x, {"weight": weight}, calibrate, bits=bits))
    assert all(primitive.endswith("I8") == integers for primitive in products(compiled(layer, x)))
    assert_same(layer, x)


@pytest.mark.parametrize("constants", [0, 2], ids=["computed", "known"])
def test_attention_is_floating(overflowing, constants):
    quantized, inputs = attention.calibrated(AffineSpec(8), (0.0, 1.2)), attention.factors()
    with torch.no_grad():
        expected = quantized.products(*inputs, None)
    found = attention.exported(quantized, *inputs, constants=constants)
    attention.assert_same(found, expected, attention.smallest_move(quantized))


def test_a_floating_quantizer_has_the_same_steps(overflowing):
    x = torch.linspace(-3, 3, 1000).view(10, 100)
    parameters = [op.parameter(list(shape), np.float32) for shape in ((10, 100), (100, 10))]
    ends = [op.constant(np.float32(end)) for end in (-1.0, 2.0, -2.0, 4.0)]
    model = ov.Model([op.matmul(*(op.fake_quantize(p, *ends, 256) for p in parameters), False, False)], parameters)
    eye = torch.zeros(100, 10)  # The first 10 columns of x, times 2.
    eye[:10] = torch.eye(10)
    before = model.clone()
    for _ in range(2):  # Once more changes nothing.
        avoid_overflow(model)
        levels = [n.get_attributes()["levels"] for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]
        assert sorted(levels) == [256, FLOATING_LEVELS]
        y, expected = (
            core().compile_model(m, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy(), eye.numpy()])[0]
            for m in (model, reference(before))
        )
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def reference(model: ov.Model) -> ov.Model:
    """The quantizers alone; the product in a form that no plugin takes for integers."""
    product = model.get_results()[0].input_value(0).get_node()
    x, y = (product.input_value(number) for number in (0, 1))
    zero = op.multiply(op.reduce_sum(x, op.constant(np.array([0, 1])), False), op.constant(np.float32(0)))
    return ov.Model([op.matmul(op.add(x, zero), op.add(y, zero), False, False)], model.get_parameters())
