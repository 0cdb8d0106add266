"""Products that a processor does not sum exactly.

Where there is no instruction that multiplies codes and sums them in 32 bits (on x86: VNNI, AMX), OpenVINO 2026.4 adds
products of 8 bits pair by pair in 16 bits. Twice 255 * 127 is more than these hold: the pair saturates, and nothing
says so. There, products that could are computed in floating point: those of weights beyond 64, which 2 * 255 * 64 <
2^15 makes the largest that surely fits, and those of attention, whose factors take all 8 bits.
"""

from functools import cache

import numpy as np
import openvino as ov
import openvino.opset13 as op

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.quantize import LEVELS, constant

LARGEST, LARGEST_IN_PAIRS = 128, 64
FLOATING_LEVELS = 2 * LEVELS - 1
"""Of a FakeQuantize, so that the plugin does not multiply its output in integers. Steps stay what they are."""


@cache
def overflows() -> bool:
    """Whether this processor saturates: found out by a product of the largest codes."""
    x, size = op.parameter([16, 64], np.float32), 64
    ends = (constant(end) for end in (0, 255, 0, 255))
    weight = op.multiply(op.convert(op.constant(np.full((size, size), 127, np.int8)), np.float32), constant(1.0))
    model = ov.Model([op.matmul(op.fake_quantize(x, *ends, LEVELS), weight, False, True)], [x])
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return bool((compiled([np.full((16, size), 255, np.float32)])[0] != 255 * 127 * size).any())


def largest_weight() -> int:
    """The magnitude up to which weights can be multiplied as int8 here."""
    return LARGEST_IN_PAIRS if overflows() else LARGEST


def avoid_overflow(model: ov.Model) -> None:
    """Have products of two activations computed in floating point where this processor saturates, in place."""
    if not overflows():
        return
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        factors = [product.input_value(number).get_node() for number in (0, 1)]
        if all(factor.get_type_name() == "FakeQuantize" for factor in factors):
            _make_floating(factors[0])


def _make_floating(quantizer: ov.Node) -> None:
    """The same values from a FakeQuantize of twice the range, whose upper half is never reached."""
    if quantizer.get_attributes()["levels"] == FLOATING_LEVELS:
        return
    x, *ends = (quantizer.input_value(number) for number in range(5))
    lower, upper, low, high = (end.get_node().data for end in ends)
    below = op.minimum(x, constant(upper)).output(0)
    twice = lower, 2 * upper - lower, low, 2 * high - low
    again = op.fake_quantize(below, *(constant(end) for end in twice), FLOATING_LEVELS)
    quantizer.output(0).replace(again.output(0))
