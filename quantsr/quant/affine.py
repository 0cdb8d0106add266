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

SMALLEST_SCALE = 1e-8
"""A constant tensor has l = u; this keeps its scale from being 0."""


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest whole number; the gradient is that of the identity."""
    return x.detach().round() + (x - x.detach())  # In this order the value is a whole number exactly.


def qparams(lower: Tensor, upper: Tensor, qmin: int, qmax: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and zero point for values in [lower, upper]; differentiable in both bounds, through scale and zero point.

    Args:
        lower, upper: bounds of any one shape, in the units of the tensor.
        qmin, qmax: lowest and highest code.
        symmetric: zero point 0 and the scale of the larger bound.

    Returns:
        (scale, zero_point), both of the shape of the bounds.
    """
    if symmetric:
        scale = (torch.maximum(lower.abs(), upper.abs()) / qmax).clamp(min=SMALLEST_SCALE)
        return scale, torch.zeros_like(scale)
    scale = ((upper - lower) / (qmax - qmin)).clamp(min=SMALLEST_SCALE)
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


def _inside(codes: Tensor, qmin: int, qmax: int, open_ends: bool) -> Tensor:
    """Where the clamp lets the gradient of rounded codes through."""
    return (codes > qmin) & (codes < qmax) if open_ends else (codes >= qmin) & (codes <= qmax)


class _FakeQuantize(torch.autograd.Function):
    """Keeps one byte per element (where the clamp was open), or, where scale or zero point train, ``x`` itself: the
    codes are computed again from it in the backward pass, and ``x`` is often held by its producer anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, open_ends: bool
    ) -> Tensor:
        ctx.limits = (qmin, qmax, open_ends)
        ctx.learns_range = any(ctx.needs_input_grad[1:3])
        codes = (x.float() / scale).round_().add_(zero_point)
        if ctx.learns_range:
            ctx.save_for_backward(x, scale, zero_point)
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(_inside(codes, *ctx.limits))
        return codes.clamp_(qmin, qmax).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.learns_range:
            (inside,) = ctx.saved_tensors
            return grad * inside, None, None, None, None, None
        x, scale, zero_point = ctx.saved_tensors
        scaled = x.float() / scale
        codes = scaled.round().add_(zero_point)
        inside = _inside(codes, *ctx.limits)
        grad_x = grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * inside
        if ctx.needs_input_grad[1]:  # d x_hat / d scale = (q - zero_point) - [inside] x / scale
            slope = codes.clamp_(*ctx.limits[:2]).sub_(zero_point).sub_(scaled.mul_(inside))
            grad_scale = slope.mul_(grad).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:  # d x_hat / d zero_point = -[outside] scale
            grad_zero_point = (grad * ~inside).mul_(scale).neg_().sum_to_size(zero_point.shape)
        return grad_x, grad_scale, grad_zero_point, None, None, None
