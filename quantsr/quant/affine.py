"""Affine quantization as pure functions.

    scale = (u - l) / (qmax - qmin)      zero_point = qmin + round(-l / scale)
    q = clamp(round(x / scale) + zero_point, qmin, qmax)      x_hat = (q - zero_point) * scale

Rounding passes gradients straight through, and so does the clamp wherever the rounded code lies inside [qmin, qmax],
both ends included. All functions broadcast ``scale`` and ``zero_point`` over ``x``; codes are floats that hold whole
numbers, and halves round to even.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_SCALE = 1e-8
"""A constant tensor has l = u; this keeps its scale from being 0."""


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest whole number; the gradient is that of the identity."""
    if not x.requires_grad:
        return x.round()
    return x.detach().round() + (x - x.detach())  # In this order the value is a whole number exactly.


def qparams(
    lower: Tensor, upper: Tensor, qmin: int, qmax: int, symmetric: bool = False, smallest: float = SMALLEST_SCALE
) -> tuple[Tensor, Tensor]:
    """Scale and zero point for values in [lower, upper]; differentiable in both bounds, through scale and zero point.

    Args:
        lower, upper: bounds of any one shape, in the units of the tensor.
        qmin, qmax: lowest and highest code.
        symmetric: zero point 0 and the scale of the larger bound.
        smallest: what the scale does not fall below.

    Returns:
        (scale, zero_point), both of the shape of the bounds.
    """
    if symmetric:
        scale = (torch.maximum(lower.abs(), upper.abs()) / qmax).clamp(min=smallest)
        return scale, torch.zeros_like(scale)
    scale = ((upper - lower) / (qmax - qmin)).clamp(min=smallest)
    return scale, round_through(-lower / scale) + qmin


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Codes of ``x``: whole numbers in [qmin, qmax], as float32 of the shape of ``x``. No gradient."""
    with torch.no_grad():
        return (x.float() / scale).round_().add_(zero_point).clamp_(qmin, qmax)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of ``codes``: (codes - zero_point) * scale."""
    return (codes - zero_point) * scale


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, open_ends: bool = False
) -> Tensor:
    """``dequantize(quantize(x))`` with straight-through gradients to ``x``, ``scale`` and ``zero_point``.

    Args:
        x: any shape; computed in float32, returned in its own dtype.
        scale, zero_point: broadcastable to ``x``.
        qmin, qmax: lowest and highest code.
        open_ends: block the gradient at the codes qmin and qmax too, as ``torch.clamp`` does in recent releases.
    """
    return _FakeQuantize.apply(x, scale, zero_point, qmin, qmax, open_ends)


def fake_quantize_with_excess(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """(:func:`fake_quantize` of float32 values, how many codes each lies outside the range). No gradient."""
    with torch.no_grad():
        codes = (x / scale).round_()
        clamped = torch.maximum(codes, qmin - zero_point)
        torch.minimum(clamped, qmax - zero_point, out=clamped)
        return clamped * scale, codes.sub_(clamped)


class _FakeQuantize(torch.autograd.Function):
    """Keeps one byte per element (where the clamp was open) and, where the range trains, the slope to the scale.

    Masks are computed with as floats: products of float and bool tensors are many times slower on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, open_ends: bool
    ) -> Tensor:
        learns, learns_range = any(ctx.needs_input_grad[:3]), any(ctx.needs_input_grad[1:3])
        lowest, highest = qmin - zero_point, qmax - zero_point  # Codes are counted from the zero point here.
        scaled = x.float() / scale
        codes = scaled.round() if learns_range else scaled.round_()
        clamped = torch.maximum(codes, lowest, out=None if learns else codes)
        torch.minimum(clamped, highest, out=clamped)
        if learns:
            inside = codes.eq_(clamped)
            if open_ends:
                inside.mul_(clamped != lowest).mul_(clamped != highest)
            # d x_hat / d scale = (q - zero_point) - [inside] x / scale
            slope = torch.sub(clamped, scaled.mul_(inside), out=scaled) if learns_range else None
            ctx.save_for_backward(inside.bool(), *((slope, scale) if learns_range else ()))
            ctx.zero_point_shape = zero_point.shape
        return clamped.mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, *range_tensors = ctx.saved_tensors
        grad_x = inside.to(grad.dtype).mul_(grad)
        grad_scale = grad_zero_point = None
        if not range_tensors:
            return grad_x, None, None, None, None, None
        slope, scale = range_tensors
        if ctx.needs_input_grad[1]:
            grad_scale = (slope * grad).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:  # d x_hat / d zero_point = -[outside] scale
            grad_zero_point = (grad_x - grad).mul(scale).sum_to_size(ctx.zero_point_shape)
        return grad_x, grad_scale, grad_zero_point, None, None, None
