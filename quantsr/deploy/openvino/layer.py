"""A folded layer as OpenVINO operations, its product in integers.

    y = s_w * (q_w - z_w) . Qa(x')  +  L1 (L2' x')  +  c            (one product per part of the input channels)

The plugin multiplies in integers only if the weight is int8 and has no zero point. Codes minus their zero point are
that, as long as they fit: always below 8 bits, where no bound is far off. Where a row does not fit, it is shifted by
k = z_w - z' so that it does, and  - s_w k sum(Qa(x'))  is added, the sum over the kernel's window being an integer
product with a kernel of ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino.opset13 as op
import torch
from openvino import Output
from torch import Tensor

from quantsr.deploy.openvino.packed import packed_codes
from quantsr.deploy.openvino.quantize import INTEGER_BITS, Quantized, constant, quantized
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.transforms import along

LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class IntegerWeight:
    """One part of a weight: ``scale * (codes - zero_point - shift)``, where codes - zero_point fit into int8.

    Attributes:
        codes: uint8 ``(out, in, *kernel)``, below ``2^bits``.
        zero_point: float32 ``(out,)``, whole numbers.
        scale, shift: float32 ``(out,)``; the shift is 0 wherever codes minus the layer's own zero point fit.
    """

    codes: Tensor
    zero_point: Tensor
    scale: Tensor
    shift: Tensor

    def values(self) -> Tensor:
        """The weight itself, float32."""
        zero_point, scale = (along(t, 0, self.codes.ndim) for t in (self.zero_point + self.shift, self.scale))
        return (self.codes - zero_point) * scale


@dataclass(frozen=True)
class LayerInput:
    """What a layer makes of its input before the product.

    Attributes:
        x: transformed, but for what the quantizers' bounds do.
        slope: of the input's channels, which the bounds apply; None where ``x`` has it already.
        parts: Qa(T(x)), one for every part of the channels.
    """

    x: Output
    slope: Tensor | None
    parts: list[Quantized]


def layer_output(layer: FoldedLayer, x: Output) -> Output:
    """What ``layer(x)`` computes.

    Args:
        layer: in its inference form.
        x: float32 of the layer's input shape, any batch and size.
    """
    operation, recipe = layer.operation, layer.recipe
    given, total = layer_input(layer, x), None
    for act, weight in zip(given.parts, integer_weights(layer), strict=True):
        y = _product(operation, act, weight, recipe.weight.bits, why_not(layer) is None)
        total = y if total is None else op.add(total, y).output(0)
    if recipe.rank:
        down = layer.L2.float()
        if given.slope is not None:
            down = down * along(given.slope, 1, down.ndim)
        total = op.add(total, _pointwise(operation, product(operation, given.x, constant(down)), layer.L1)).output(0)
    added = _constant_output(layer, x)
    return total if added is None else op.add(total, added).output(0)


def layer_input(layer: FoldedLayer, x: Output) -> LayerInput:
    """The transformed and quantized input of a layer."""
    axis, ndim, parts = layer.operation.axis, _ndim(x), layer.recipe.parts(layer.codes.shape[1])
    slope = offset = None
    if layer.smoothing is not None and _folds(layer):
        slope = 1 / layer.smoothing.scale.detach()
        offset = None if layer.smoothing.offset is None else layer.smoothing.offset.detach()
    elif layer.smoothing is not None:
        x = _smoothed(layer, x)
    if layer.rotation is not None:
        x = _rotated(layer, x)
    slopes, offsets = (_pieces(vector, parts, axis, ndim) for vector in (slope, offset))
    pieces = split(x, axis % ndim, parts)
    quantizer = layer.input_quantizer
    found = [quantized(piece, quantizer, n, slopes[n], offsets[n]) for n, piece in enumerate(pieces)]
    return LayerInput(x, slope, found)


def _ndim(x: Output) -> int:
    return x.get_partial_shape().rank.get_length()


def why_not(layer: FoldedLayer) -> str | None:
    """Why a layer's product stays in floating point; None where it does not."""
    if layer.recipe.act.bits > INTEGER_BITS:
        return f"activations of {layer.recipe.act.bits} bits"
    if layer.recipe.act.granularity == "token" and any(size > 1 for size in layer.codes.shape[2:]):
        return "a scale per position: a sum over positions with different scales is no sum of integers"
    return None


def integer_weights(layer: FoldedLayer) -> list[IntegerWeight]:
    """The weight of every part, in int8."""
    rows, channels = layer.codes.shape[:2]
    sizes = layer.recipe.parts(channels)
    lowest = layer.recipe.weight.qmin
    found = []
    for number, codes in enumerate(layer.codes.split(list(sizes), 1)):
        scale, zero_point = (t[..., number].expand(rows) for t in (layer.scale, layer.zero_point))
        zero_point = zero_point - lowest  # Of codes that are counted from the lowest one, as these are.
        flat = codes.flatten(1).float() - zero_point[:, None]
        # The smallest shift that takes the row into [-128, 127]; 0 for most widths.
        shift = (LOWEST - flat.amin(1)).clamp(min=0) + (HIGHEST - flat.amax(1)).clamp(max=0)
        found.append(IntegerWeight(codes, zero_point - shift, scale, shift))
    return found


def product(operation: Operation, x: Output, weight: Output) -> Output:
    """The layer's bare product."""
    if operation.kind == "Linear":
        return op.matmul(x, weight, False, True).output(0)
    padding = list(operation.padding)
    return op.convolution(x, weight, list(operation.stride), padding, padding, list(operation.dilation)).output(0)


def split(x: Output, axis: int, sizes: Sequence[int]) -> list[Output]:
    """``x`` in pieces along an axis."""
    if len(sizes) == 1:
        return [x]
    return op.variadic_split(x, constant(axis, np.int64), constant(sizes, np.int64)).outputs()


def _product(operation: Operation, act: Quantized, weight: IntegerWeight, bits: int, integers: bool) -> Output:
    """The product of one part, the weight stored in ``bits`` bits."""
    ndim = weight.codes.ndim

    def rows(values: Tensor) -> Output:
        """A value per row, as it broadcasts over the output."""
        return constant(values if operation.kind == "Linear" else values.view(1, -1, *[1] * (ndim - 2)))

    def packed(zero_point: Tensor) -> Output:
        codes = packed_codes(weight.codes, along(zero_point, 0, ndim), bits)
        return op.multiply(codes, constant(along(weight.scale, 0, ndim))).output(0)

    if not integers:
        return product(operation, act.dequantized(), packed(weight.zero_point + weight.shift))
    y = product(operation, act.values, packed(weight.zero_point))
    if weight.shift.any():
        y = op.subtract(y, op.multiply(_window(operation, act.values, weight), rows(weight.shift * weight.scale)))
    if act.scale is None:
        return y if isinstance(y, Output) else y.output(0)
    # (values - zero_point) scale: the zero point meets every weight of its row that lies inside the input.
    values = weight.values()
    if operation.kind == "Linear" or not any(operation.padding):
        response = rows(values.flatten(1).sum(1))
    else:
        response = product(operation, _ones(act.values), constant(values.sum(1, keepdim=True)))
    return op.multiply(op.subtract(y, op.multiply(act.zero_point, response)), act.scale).output(0)


def _window(operation: Operation, x: Output, weight: IntegerWeight) -> Output:
    """The sum over all channels and the kernel's window: over the channels as a product of integers, then the window.

    A kernel of ones over all channels would cost as much as 16 rows of the layer's own: the plugin fills up to that.
    """
    channels, kernel = weight.codes.shape[1], weight.codes.shape[2:]
    shape = (1, channels, *[1] * len(kernel))
    # Without a scale of the weight's own rank the plugin takes it for a float.
    ones = op.multiply(
        packed_codes(torch.ones(shape, dtype=torch.uint8), torch.zeros(1), 8), constant(np.ones([1] * len(shape)))
    )
    if all(size == 1 for size in kernel):
        return product(operation, x, ones.output(0))
    total = _pointwise_product(operation, x, ones.output(0))
    return product(operation, total, constant(np.ones((1, 1, *kernel))))


def _ones(x: Output) -> Output:
    """A map of ones ``(1, 1, *spatial)`` of the size of ``x``."""
    shape = op.shape_of(x, output_type="i64")
    spatial = op.slice(
        shape, *(constant([value], np.int64) for value in (2, x.get_partial_shape().rank.get_length(), 1))
    )
    return op.broadcast(constant(1.0), op.concat([constant([1, 1], np.int64), spatial], 0)).output(0)


def _constant_output(layer: FoldedLayer, x: Output) -> Output | None:
    """b + b_align, and what the offset is worth at every position."""
    bias, response = layer.bias, layer.offset_response
    if layer.operation.kind == "Linear":
        values = [t for t in (bias, None if response is None else response[:, 0]) if t is not None]
        return constant(sum(values)) if values else None
    total = None if bias is None else constant(bias.view(1, -1, *[1] * (_ndim(x) - 2)))
    if response is None:
        return total
    y = product(layer.operation, _ones(x), constant(response))
    return y if total is None else op.add(y, total).output(0)


def _pointwise(operation: Operation, x: Output, weight: Tensor) -> Output:
    """The product with ``(out, in)`` at every position."""
    return _pointwise_product(operation, x, constant(weight.view(*weight.shape, *[1] * len(operation.stride))))


def _pointwise_product(operation: Operation, x: Output, weight: Output) -> Output:
    ndim = len(operation.stride)
    plain = Operation(operation.kind, operation.axis, (1,) * ndim, (0,) * ndim, (1,) * ndim)
    return product(plain, x, weight)


def _folds(layer: FoldedLayer) -> bool:
    """Whether scale and offset of the smoothing can be in the quantizer's bounds."""
    static = layer.recipe.act.range != "dynamic"
    return static and layer.rotation is None and not (layer.recipe.offset and layer.recipe.rank)


def _smoothed(layer: FoldedLayer, x: Output) -> Output:
    ndim, scale, offset = _ndim(x), layer.smoothing.scale.detach(), layer.smoothing.offset
    if offset is not None:
        x = op.subtract(x, constant(along(offset.detach(), layer.operation.axis, ndim))).output(0)
    return op.multiply(x, constant(along(1 / scale, layer.operation.axis, ndim))).output(0)


def _rotated(layer: FoldedLayer, x: Output) -> Output:
    """x H, part by part, as one product with H in floating point."""
    parts, axis, ndim = layer.rotation.sizes, layer.operation.axis, _ndim(x)
    eye = torch.eye(sum(parts))
    matrix = layer.rotation._rotate(eye, -1)  # Row i of x H is that of the unit vector i.
    if axis % ndim == ndim - 1:
        return op.matmul(x, constant(matrix), False, False).output(0)
    kernel = constant(matrix.T.reshape(*matrix.shape, *[1] * (ndim - 2)))
    ones, zeros = [1] * (ndim - 2), [0] * (ndim - 2)
    return op.convolution(x, kernel, ones, zeros, zeros, ones).output(0)


def _pieces(vector: Tensor | None, parts: Sequence[int], axis: int, ndim: int) -> list[Tensor | None]:
    if vector is None:
        return [None] * len(parts)
    return [along(piece, axis, ndim) for piece in vector.split(list(parts))]
