"""Quantized activations as OpenVINO operations: what a :class:`quantsr.quant.quantizer.Quantizer` computes.

OpenVINO's CPU plugin runs a product in integers if its activation comes from a FakeQuantize with 256 levels and
constant bounds, and its weight from int8 constants without a zero point. So

- fewer bits are 256 levels of which the upper ones are cut off;
- a scale and an offset per input channel (smoothing) are in the FakeQuantize's input bounds, at no cost;
- dynamic bounds divide the activation by its scale first: the FakeQuantize then rounds codes, with constant bounds, and
  scale and zero point come in after the product.
"""

from dataclasses import dataclass

import numpy as np
import openvino.opset13 as op
import torch
from openvino import Output
from torch import Tensor

from quantsr.quant.affine import SMALLEST_SCALE
from quantsr.quant.quantizer import RELEASED_SMALLEST_SCALE, Quantizer
from quantsr.quant.spec import AffineSpec

LEVELS = 256
INTEGER_BITS = 8
"""Activations of more bits are rounded, too, but multiplied in floating point."""


@dataclass(frozen=True)
class Quantized:
    """An activation whose values are ``scale * (values - zero_point)``.

    Attributes:
        values: a product takes them as integers; for static bounds they are dequantized already.
        scale, zero_point: of dynamic bounds, broadcastable over ``values``; None for static ones.
    """

    values: Output
    scale: Output | None = None
    zero_point: Output | None = None

    def dequantized(self) -> Output:
        """The activation, as the simulation has it."""
        if self.scale is None:
            return self.values
        return op.multiply(op.subtract(self.values, self.zero_point), self.scale).output(0)


def constant(values: Tensor | np.ndarray | float, dtype: type = np.float32) -> Output:
    """A constant, float32 if nothing else is said."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return op.constant(np.array(array, dtype, order="C")).output(0)


def quantized(
    x: Output, quantizer: Quantizer, part: int, slope: Tensor | None = None, offset: Tensor | None = None
) -> Quantized:
    """Qa((x - offset) * slope) for one part of the channels.

    Args:
        x: float32 activation, the channels of the part.
        quantizer: of all parts.
        part: number of the part.
        slope, offset: of the part's channels, broadcastable over ``x``; only for static bounds.
    """
    if quantizer.spec.range == "dynamic":
        return _dynamic(x, quantizer.spec, quantizer.axis)
    scale, zero_point = (float(t.flatten()[part]) for t in static_qparams(quantizer))
    return Quantized(_static(x, quantizer.spec, scale, zero_point, slope, offset))


def static_qparams(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every part of a quantizer whose bounds are known."""
    shape = [1] * (quantizer.axis % 4 + 1)
    shape[quantizer.axis] = sum(quantizer.sizes)
    with torch.no_grad():
        scale, zero_point = quantizer.part_qparams(torch.zeros(shape))
    return scale.detach(), zero_point.detach()


def _static(
    x: Output, spec: AffineSpec, scale: float, zero_point: float, slope: Tensor | None, offset: Tensor | None
) -> Output:
    def bound(code: int) -> float:
        return (code - zero_point) * scale

    def before(value: float) -> Output:
        """What becomes ``value`` by offset and slope."""
        if slope is None:
            return constant(value)
        return constant(value / slope if offset is None else value / slope + offset)

    levels = max(LEVELS, 2**spec.bits)
    if 2**spec.bits < levels:  # Codes above the highest one; those below the lowest do not exist.
        x = op.minimum(x, before(bound(spec.qmax))).output(0)
    lower, upper = bound(spec.qmin), bound(spec.qmin + levels - 1)
    ends = before(lower), before(upper), constant(lower), constant(upper)
    return op.fake_quantize(x, *ends, levels).output(0)


def _dynamic(x: Output, spec: AffineSpec, axis: int) -> Quantized:
    """Bounds of the tensor or of every token in it; codes are counted from the lowest one."""
    every = list(range(x.get_partial_shape().rank.get_length()))
    axes = constant([axis] if spec.granularity == "token" else every, np.int64)
    lower, upper = op.reduce_min(x, axes, True), op.reduce_max(x, axes, True)
    if spec.ratio < 1:
        lower, upper = (op.multiply(end, constant(spec.ratio)) for end in (lower, upper))
    if spec.symmetric:
        span, codes = op.maximum(op.abs(lower), op.abs(upper)), spec.qmax
    else:
        span, codes = op.subtract(upper, lower), spec.qmax - spec.qmin
    smallest = RELEASED_SMALLEST_SCALE if spec.as_released else SMALLEST_SCALE
    scale = op.maximum(op.divide(span, constant(codes)), constant(smallest)).output(0)
    scaled = op.divide(x, scale)
    if spec.symmetric:
        zero_point = constant(-spec.qmin)
    else:
        zero_point = op.round(op.divide(op.negative(lower), scale), "half_to_even").output(0)
    shifted = op.minimum(op.add(scaled, zero_point), constant(spec.qmax - spec.qmin))
    levels = max(LEVELS, 2**spec.bits)
    ends = constant(0), constant(levels - 1)
    return Quantized(op.fake_quantize(shifted, *ends, *ends, levels).output(0), scale, zero_point)
