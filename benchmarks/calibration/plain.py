"""Quantized layers written out in eager torch, to be compared with."""

from itertools import accumulate

import torch
from torch import Tensor, nn

from quantsr.quant.affine import round_through
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.transforms import Rotation, along


class PlainLayer(nn.Module):
    """What a calibrated layer computes, written out in differentiable operations.

    Each of them keeps its tensors for the backward pass, and nothing is kept between steps.

    Args:
        layer: with smoothing, offset and learned bounds.
    """

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, operation, smoothing = self.layer, self.layer.operation, self.layer.smoothing
        shifted = x - along(smoothing.offset, operation.axis, x.ndim)
        x_hat = _plain(layer.input_quantizer, shifted / along(smoothing.scale, operation.axis, x.ndim))
        weight = layer.weight * along(smoothing.scale, 1, layer.weight.ndim)
        y = operation(x_hat, _plain(layer.weight_quantizer, weight), layer.bias)
        response = (layer.weight * along(smoothing.offset, 1, layer.weight.ndim)).sum(1, keepdim=True)
        if operation.kind == "Linear":
            return y + response[:, 0]
        return y + operation(x.new_ones(1, 1, *x.shape[2:]), response)


class PlainDualBranch(nn.Module):
    """What the authors' QuantVSR layer computes, written out as they do it.

    Args:
        layer: with rotation, low-rank branch, channel split and bias alignment.
    """

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer, sizes = layer, layer.input_quantizer.sizes
        rotation = Rotation(sizes, 1)
        rotation.load_state_dict(layer.rotation.state_dict())
        rows, starts = rotation.input(torch.eye(sum(sizes))).split(sizes), accumulate(sizes, initial=0)
        self.matrices = [row[:, start : start + len(row)].clone() for row, start in zip(rows, starts, strict=False)]

    def forward(self, x: Tensor) -> Tensor:
        layer, operation = self.layer, self.layer.operation
        assert layer.weight.allclose(layer.weight)
        skip = (layer.low_rank.L1 @ layer.low_rank.L2).view_as(layer.weight)
        x_hat = _plain(layer.input_quantizer, self._rotated(x, operation.axis))
        w_hat = _plain(layer.weight_quantizer, self._rotated(layer.weight - skip, 1))
        y = operation(x_hat, w_hat, layer.bias) + operation(x, skip)
        return y + along(layer.bias_alignment, operation.axis, y.ndim)

    def _rotated(self, x: Tensor, axis: int) -> Tensor:
        pieces = zip(x.split(self.layer.input_quantizer.sizes, axis), self.matrices, strict=True)
        equation = "b c ..., c j -> b j ..." if axis == 1 else "... c, c j -> ... j"
        return torch.cat([torch.einsum(equation, piece, matrix) for piece, matrix in pieces], axis)


def _plain(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Fake quantization of every part with its own bounds."""
    spec, pieces = quantizer.spec, []
    for part, piece in enumerate(x.split(quantizer.sizes, quantizer.axis)):
        if spec.range == "dynamic":
            lower, upper = piece.detach().min(), piece.detach().max()
        else:
            lower, upper = (along(bound[..., part], 0, x.ndim) for bound in (quantizer.lower, quantizer.upper))
        scale = (upper - lower) / (spec.qmax - spec.qmin)
        zero_point = round_through(-lower / scale)
        codes = (round_through(piece / scale) + zero_point).clamp(spec.qmin, spec.qmax)
        pieces.append((codes - zero_point) * scale)
    return torch.cat(pieces, quantizer.axis)
