"""Bounds of least squared error (OMSE, arXiv 1902.06822): a search over fractions of a tensor's extremes."""

from collections.abc import Sequence
from itertools import count
from math import gcd

import torch
from torch import Tensor

from quantsr.quant.affine import fake_quantize, qparams
from quantsr.quant.parts import extremes
from quantsr.quant.spec import Granularity

FRACTIONS = tuple(i / 20 for i in range(20, 0, -1))
SAMPLES = 8192
"""Values of an activation that the search looks at, evenly spread: as good as all of them, and far faster."""
BLOCK = 2**18
"""Values that are searched together, rows times fractions: the search reads them several times, best from a cache."""


def clipped_extremes(
    x: Tensor, granularity: Granularity, axis: int, sizes: Sequence[int], qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Fractions of the extremes of every part of ``x`` that quantize it with the least squared error.

    Bounds per tensor are searched entry by entry along axis 0 (image by image), and the outermost taken: they then do
    not depend on how a batch is divided among devices.

    Args:
        x, granularity, axis, sizes: as for :func:`quantsr.quant.parts.extremes`, without granularity ``token``.
        qmin, qmax, symmetric: of the number format.

    Returns:
        (lower, upper), of the shape that ``extremes`` gives.
    """
    pieces = x.detach().float().split(list(sizes), axis) if len(sizes) > 1 else (x.detach().float(),)
    if granularity == "channel":
        rows = [piece.flatten(1) for piece in pieces]
    else:
        rows = [_sampled(piece if piece.ndim > 1 else piece[None]) for piece in pieces]
    best = [_least_error(row, qmin, qmax, symmetric) for row in rows]
    if granularity == "channel":
        return torch.stack([lower for lower, _ in best], 1), torch.stack([upper for _, upper in best], 1)
    return torch.stack([lower.min() for lower, _ in best]), torch.stack([upper.max() for _, upper in best])


def _sampled(x: Tensor) -> Tensor:
    """At most ``SAMPLES`` values of each entry along axis 0, and its extremes.

    The stride has no factor in common with any axis: so the values come from all channels and positions.
    """
    rows = x.flatten(1)
    smallest = -(-rows.shape[1] // SAMPLES)
    stride = next(s for s in count(smallest) if all(gcd(s, size) == 1 for size in x.shape[1:]))
    lower, upper = extremes(rows, "channel", 1, (rows.shape[1],))
    return torch.cat([rows[:, ::stride], lower, upper], 1)


def _least_error(rows: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Best bounds ``(n,)`` of every row of ``(n, values)``."""
    blocks = rows.split(max(1, BLOCK // rows.shape[1])) if rows.is_cpu else [rows]
    found = [_search(block, qmin, qmax, symmetric) for block in blocks]
    return torch.cat([lower for lower, _ in found]), torch.cat([upper for _, upper in found])


def _search(rows: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The same for a few rows: both bounds shrink together first, then each alone."""
    lower, upper = (t[:, 0] for t in extremes(rows, "channel", 1, (rows.shape[1],)))
    fractions = torch.tensor(FRACTIONS, device=rows.device)[:, None]
    together = max(1, BLOCK // rows.numel())  # Few values cost less in one operation than in one for each fraction.
    for moves_lower, moves_upper in ((True, True), (True, False), (False, True)):
        low = lower * fractions if moves_lower else lower.expand(len(FRACTIONS), -1)
        high = upper * fractions if moves_upper else upper.expand(len(FRACTIONS), -1)
        scale, zero_point = qparams(low, high, qmin, qmax, symmetric)
        errors = [
            (fake_quantize(rows, s[..., None], z[..., None], qmin, qmax) - rows).square().sum(-1)
            for s, z in zip(scale.split(together), zero_point.split(together), strict=True)
        ]
        best = torch.cat(errors).argmin(0, keepdim=True)  # Of equal errors that of the widest bounds.
        lower, upper = low.gather(0, best)[0], high.gather(0, best)[0]
    return lower, upper
