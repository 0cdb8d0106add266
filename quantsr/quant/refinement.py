"""The dual-branch layer of QuantVSR (section 3.2) while nothing of it trains but low-rank branch and bias.

    y = x_hat * W_q + L1 (L2' x')       x' = T(x)    x_hat = Qa(x')    L2' = T(L2)    W_q = Qw(T(W) - L1 L2')

With W_e = W_q + L1 L2' and the quantization error e = x' - x_hat this is

    y = x_hat * W_e + L1 d              d = L2' e

a product of the layer's own size and one of r outputs. Let g be the gradient to y, and h = L1^T g. Rounding passes
gradients straight through, so L1 L2' has the slope 1 in the branch and -1 in W_q, where W_q is not clamped. So

    dL1  = g^T d + C L2'^T
    dL2' = [gradient to the weight of the product that takes e to d, for an output gradient h] + L1^T C
    dx'  = g * W_e^T

where C is the gradient of x_hat * W_q to W_q at the clamped weights, and 0 elsewhere. No gradient of a whole weight is
needed. The range of x' is its own, so that nothing of x' is clamped.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantsr.quant.low_rank import LowRank
from quantsr.quant.operation import Operation
from quantsr.quant.recipe import LayerRecipe

if TYPE_CHECKING:
    from quantsr.quant.layer import QuantizedLayer

FEW = 1 / 64
"""Up to this share of clamped weights, their gradients one by one are cheaper than the gradient of the whole weight."""


def applies(recipe: LayerRecipe) -> bool:
    """Whether layers of a recipe have this form: a low-rank branch, dynamic inputs, all else fixed."""
    fixed = recipe.smoothing is None and recipe.weight.range == "minmax" and not recipe.update_rank
    fixed = fixed and recipe.rounding == "nearest"
    as_released = recipe.act.as_released or recipe.weight.as_released
    return recipe.rank > 0 and fixed and recipe.act.range == "dynamic" and not as_released


def dual_branch(layer: "QuantizedLayer", x: Tensor) -> Tensor:
    """Both branches of a layer to whose recipe this form applies, without bias."""
    low_rank = branch(layer)
    return _DualBranch.apply(layer, x, low_rank.L1, low_rank.L2)


def branch(layer: "QuantizedLayer") -> LowRank:
    """The low-rank branch, which layers of this form have."""
    if layer.low_rank is None:
        raise ValueError(f"no low-rank branch in this recipe: {layer.recipe}")
    return layer.low_rank


def fixed_down(layer: "QuantizedLayer") -> Tensor:
    """L2', ``(r, in, *kernel)``, without gradient."""
    return layer.transformed(branch(layer).down).detach()


@torch.no_grad()
def effective_weight(layer: "QuantizedLayer") -> Tensor:
    """W_e, in the shape of the weight; kept while nothing that makes it is training."""
    sources = [layer.weight, *layer.weight_sources()]
    return layer.cached(
        "effective", sources, lambda: _with_branch(layer, layer.weight_quantizer(layer.transformed_weight()))
    )


def _with_branch(layer: "QuantizedLayer", weight: Tensor) -> Tensor:
    """W_e from W_q, in place."""
    weight.flatten(1).addmm_(branch(layer).L1, fixed_down(layer).flatten(1))
    return weight


class _DualBranch(torch.autograd.Function):
    """Keeps x' and d between forward and backward while the branch trains, and nothing otherwise."""

    @staticmethod
    def forward(ctx: Any, layer: "QuantizedLayer", x: Tensor, L1: Tensor, L2: Tensor) -> Tensor:
        operation = layer.operation
        x_rotated = layer.transformed_input(x)
        x_hat = layer.input_quantizer(x_rotated)
        y = operation(x_hat, effective_weight(layer).to(x_hat.dtype))
        ctx.layer, ctx.shape, ctx.trains = layer, x.shape, any(ctx.needs_input_grad[2:])
        d = operation(torch.sub(x_rotated, x_hat, out=x_hat), fixed_down(layer).to(x_hat.dtype))
        ctx.save_for_backward(*((x_rotated, d, L1, L2) if ctx.trains else ()))
        return operation.add_pointwise(y, d, L1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, grad = ctx.layer, grad.contiguous()
        if ctx.trains:  # L1 and L2 are among the saved ones so that torch notices a change of them in between.
            weight, dL1, dL2 = _branch_gradients(layer, grad, *ctx.saved_tensors[:2])
        else:
            weight, dL1, dL2 = effective_weight(layer), None, None
        dx = None
        if ctx.needs_input_grad[1]:
            nothing = grad.new_empty(1).expand(ctx.shape)
            dx = layer.operation.gradients(grad, nothing, weight.to(grad.dtype), (True, False))[0]
            dx = dx if layer.rotation is None else layer.rotation.input_gradient(dx)
        return None, dx, dL1, dL2


def _branch_gradients(layer: "QuantizedLayer", grad: Tensor, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(W_e, dL1, dL2) for x' and d."""
    operation, L1, down = layer.operation, branch(layer).L1.detach(), fixed_down(layer)
    x_hat = layer.input_quantizer(x)
    dL1, h = operation.pointwise_gradients(grad, d.to(grad.dtype), L1.to(grad.dtype))
    error = (x - x_hat).to(grad.dtype)
    d_down = operation.gradients(h, error, down.to(grad.dtype), (False, True))[1]
    dL1, d_down = dL1.to(L1.dtype), d_down.to(L1.dtype).view_as(down)

    weight, clamped = layer.weight_quantizer.quantize_and_find_clamped(layer.transformed_weight().detach())
    if len(clamped):
        c = weight_gradients(operation, grad, x_hat.to(grad.dtype), weight.shape, clamped).to(L1.dtype)
        rows, rest = clamped[:, 0], tuple(clamped[:, 1:].T)
        dL1.index_add_(0, rows, c[:, None] * down[(slice(None), *rest)].T)
        flat = torch.zeros_like(d_down).movedim(0, -1)
        flat.index_put_(rest, c[:, None] * L1[rows], accumulate=True)
        d_down = d_down + flat.movedim(-1, 0)
    d_down = d_down if layer.rotation is None else layer.rotation.weight_gradient(d_down)
    return _with_branch(layer, weight), dL1, d_down.flatten(1)


def weight_gradients(operation: Operation, grad: Tensor, x: Tensor, shape: torch.Size, entries: Tensor) -> Tensor:
    """The gradient of a product to single entries of its weight.

    Args:
        operation: of the product.
        grad: gradient to its output.
        x: its input.
        shape: of the weight.
        entries: ``(n, weight axes)``, their indices.

    Returns:
        ``(n,)``.
    """
    if len(entries) > FEW * shape.numel():
        return operation.gradients(grad, x, grad.new_empty(1).expand(shape), (False, True))[1][tuple(entries.T)]
    return operation.single_weight_gradients(grad, x, shape, entries)
