"""SVDQuant's choices for one layer (arXiv 2411.05007, section 4.2): its smoothing scale and its low-rank branch.

A candidate is put into the layer, which then computes as it will later: inputs and residual quantized (simulated),
the branch beside them. The candidate with the least squared error of the output is taken.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import LowRank, truncated_svd
from quantsr.quant.parts import extremes
from quantsr.quant.transforms import Smoothing, channel_magnitude


class Candidate(NamedTuple):
    """What of a layer is chosen.

    Attributes:
        scale: of the smoothing, ``(in,)``.
        L1, L2: the branch, ``(out, r)`` and ``(r, in * prod(kernel))``, for the input as it is.
    """

    scale: Tensor
    L1: Tensor
    L2: Tensor


def exponents(grid: int) -> list[tuple[float, float]]:
    """Pairs (alpha, beta) of s = max|x|^alpha / max|W|^beta: no smoothing, beta = 0, and beta = 1 - alpha.

    Args:
        grid: alpha takes the values 1 / grid to (grid - 1) / grid, as in the released code.
    """
    alphas = [i / grid for i in range(1, grid)]
    return [(0.0, 0.0), *((alpha, 0.0) for alpha in alphas), *((alpha, 1 - alpha) for alpha in alphas)]


def parts_of(layer: QuantizedLayer) -> tuple[Smoothing, LowRank]:
    """The two parts that are searched.

    Raises:
        ValueError: a recipe without one of them, or with static input ranges, which would depend on the candidate.
    """
    if layer.smoothing is None or layer.low_rank is None or layer.recipe.act.range != "dynamic":
        raise ValueError(f"the search needs smoothing, a branch and dynamic inputs, not {layer.recipe}")
    return layer.smoothing, layer.low_rank


@torch.no_grad()
def smoothing_candidates(layer: QuantizedLayer, grid: int) -> list[Candidate]:
    """One candidate for each pair of exponents, its branch the SVD of the smoothed weight.

    Args:
        layer: its smoothing scale holds max|x| (a recipe with exponents 1 and 0).
        grid: see :func:`exponents`.
    """
    activation, weight = parts_of(layer)[0].scale.detach(), channel_magnitude(layer.weight, 1)
    return [with_branch(layer, activation**alpha / weight**beta) for alpha, beta in exponents(grid)]


def with_branch(layer: QuantizedLayer, scale: Tensor, quantized: Tensor | None = None) -> Candidate:
    """A scale, and the best branch of rank r for it: that of the smoothed weight less what low bits hold already.

    Args:
        layer: whose weight.
        scale: s, ``(in,)``.
        quantized: the quantized residual that the branch is to complete, ``(out, in, *kernel)``; None for 0.
    """
    spread = scale.repeat_interleave(layer.weight[0, 0].numel())
    w = layer.weight.detach().flatten(1).float() * spread
    rank = parts_of(layer)[1].L1.shape[1]
    up, down = truncated_svd(w if quantized is None else w - quantized.flatten(1), rank)
    # The branch takes the input as it is, and the product L2 x has to be that of the smoothed weight.
    return Candidate(scale.clone(), up, down / spread)


@torch.no_grad()
def branch_candidates(layer: QuantizedLayer, iterations: int) -> list[Candidate]:
    """The branch as it is, then L = SVD(W - Q(W - L)) again and again (the released code; section 4.2 in words).

    Args:
        layer: with its scale and branch chosen.
        iterations: how many candidates, the first included.
    """
    smoothing, branch = parts_of(layer)
    candidates = [Candidate(smoothing.scale.clone(), branch.L1.clone(), branch.L2.clone())]
    before = candidates[0]
    while len(candidates) < iterations:
        put(layer, candidates[-1])
        candidates.append(with_branch(layer, before.scale, layer.quantized_weight()))
    put(layer, before)
    return candidates


@torch.no_grad()
def put(layer: QuantizedLayer, candidate: Candidate) -> None:
    """Make a candidate the layer's own, with the weight's range that follows from it."""
    smoothing, branch = parts_of(layer)
    smoothing.scale.copy_(candidate.scale)
    branch.L1.copy_(candidate.L1)
    branch.L2.copy_(candidate.L2)
    quantizer = layer.weight_quantizer
    w = layer.transformed_weight()
    quantizer.set_bounds(*extremes(w, quantizer.spec.granularity, quantizer.axis, quantizer.sizes))


@torch.no_grad()
def output_errors(layer: QuantizedLayer, candidates: Sequence[Candidate], x: Tensor) -> Tensor:
    """Squared error of the layer's output on a batch for every candidate, ``(candidates,)`` in float64.

    The layer itself stays as it is.
    """
    smoothing, branch = parts_of(layer)
    before = Candidate(smoothing.scale.clone(), branch.L1.clone(), branch.L2.clone())
    target, mode = layer.operation(x, layer.weight, layer.bias), layer.mode
    errors = []
    try:
        layer.mode = "quantized"
        for candidate in candidates:
            put(layer, candidate)
            errors.append((layer.forward(x) - target).double().square().sum())
    finally:
        put(layer, before)
        layer.mode = mode
    return torch.stack(errors)


Choice = Callable[[Tensor], int]


def least(errors: Tensor) -> int:
    """The number of the smallest error, the first of equal ones."""
    return int(errors.argmin())


def before_first_rise(errors: Tensor) -> int:
    """The number of the error after which they rise for the first time: where an iteration stops early."""
    rises = (errors[1:] > errors[:-1]).nonzero()
    return int(rises[0]) if len(rises) else len(errors) - 1
