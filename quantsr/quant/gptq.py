"""GPTQ (arXiv 2210.17323): round a weight column by column, each time moving what is left to make up for the error.

With inputs X of a linear layer the squared error of the output is tr(E H E^T) for an error E of the weight and
H = sum x x^T. A convolution is a linear layer on its patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.precision import without_autocast
from quantsr.quant.rounding import StoredRounding

DAMPING = 0.01
"""Added to the diagonal of H, relative to its mean (section 3.3, step 3)."""
BLOCK = 128
"""Columns whose errors reach the columns after them in one product (step 2); it changes no result."""


def patches(operation: Operation, x: Tensor, kernel: torch.Size) -> Tensor:
    """What every output position is a product of: ``(positions, in * prod(kernel))``.

    Args:
        operation: of the layer.
        x: its input.
        kernel: sizes of its kernel; empty for a linear layer.
    """
    if operation.kind == "Linear":
        return x.flatten(0, -2)
    x = F.pad(x, [side for padding in reversed(operation.padding) for side in (padding, padding)])
    for number, size in enumerate(kernel):
        dilation = operation.dilation[number]
        windows = x.unfold(2 + number, (size - 1) * dilation + 1, operation.stride[number])
        x = windows[..., ::dilation]
    # Axes are batch, channel, positions, kernel now, the last two as many as the kernel has.
    n = len(kernel)
    return x.movedim(1, 1 + n).flatten(0, n).flatten(1)


def second_moment(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """H of a batch: sum over all positions of p p^T, ``(n, n)`` for patches p of the layer's transformed input."""
    rows = patches(layer.operation, layer.transformed_input(x.detach().float()), layer.weight.shape[2:])
    with without_autocast(rows):
        return rows.T @ rows


def round_weight(
    w: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, damping: float = DAMPING
) -> Tensor:
    """Codes that keep the output of a layer, where rounding to the nearest keeps its weight.

    Columns are taken in their own order. A column that no input reaches is rounded to the nearest.

    Args:
        w: ``(rows, n)``.
        hessian: H, ``(n, n)``, of any scale.
        scale, zero_point: broadcastable to ``(rows, n)``.
        qmin, qmax: lowest and highest code.
        damping: see :data:`DAMPING`.

    Returns:
        Whole numbers in [qmin, qmax], float32 ``(rows, n)``.
    """
    w = w.double().clone()
    scale, zero_point = scale.double().expand_as(w), zero_point.double().expand_as(w)
    upper = _inverse_factor(hessian, damping)
    codes = torch.empty_like(w)
    columns = w.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = w.new_empty(len(w), stop - start)
        for i in range(start, stop):
            s, z = scale[:, i], zero_point[:, i]
            codes[:, i] = ((w[:, i] / s).round() + z).clamp(qmin, qmax)
            error = (w[:, i] - (codes[:, i] - z) * s) / upper[i, i]
            w[:, i + 1 : stop].addr_(error, upper[i, i + 1 : stop], alpha=-1)
            errors[:, i - start] = error
        w[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return codes.float()


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular in float64, with U^T U = (H + damping)^-1."""
    h = hessian.double().clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal.add_(damping * diagonal.mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


@torch.no_grad()
def round_layer(layer: QuantizedLayer, hessian: Tensor) -> None:
    """Store the codes of a layer whose ranges are known.

    Args:
        layer: its recipe says ``rounding="stored"``.
        hessian: the sum of :func:`second_moment` over calibration data.

    Raises:
        ValueError: a recipe with another rounding.
    """
    if not isinstance(layer.rounding, StoredRounding):
        raise ValueError(f"GPTQ needs rounding='stored' in the recipe: {layer.recipe}")
    w, spec = layer.transformed_weight().float(), layer.recipe.weight
    scale, zero_point = (t.expand_as(w).flatten(1) for t in layer.weight_quantizer.qparams(w))
    codes = round_weight(w.flatten(1), hessian, scale, zero_point, spec.qmin, spec.qmax)
    layer.rounding.store(codes.view_as(w))
