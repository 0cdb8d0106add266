"""Products of two thin matrices: a 16-bit branch beside the low-bit weight, and an update merged into it."""

from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant.precision import without_autocast


def own_rank(weight: Tensor) -> int:
    """The largest rank that a weight ``(out, in, *kernel)`` can have as a matrix ``(out, in * prod(kernel))``."""
    return min(weight.shape[0], weight[0].numel())


SMALL = 512
"""Up to this many rows or columns a full SVD takes no longer than :func:`truncated_svd`'s other way."""


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a given rank (Eckart-Young), U S and V^T of the SVD's first singular values.

    Of a large matrix only the singular vectors of its shorter side are computed, as eigenvectors of its product with
    itself, in float64: 7 times as fast for the 1280 x 11520 of Stable Diffusion's widest convolutions.

    Args:
        matrix: ``(m, n)``.
        rank: r, at most min(m, n).

    Returns:
        ``(m, r)`` and ``(r, n)`` in float32.
    """
    if min(matrix.shape) <= SMALL:
        u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
        return u[:, :rank] * s[:rank], vh[:rank]
    matrix = matrix.double()
    if matrix.shape[0] > matrix.shape[1]:
        vh = _top_eigenvectors(matrix.T @ matrix, rank).T
        return (matrix @ vh.T).float(), vh.float().contiguous()
    u = _top_eigenvectors(matrix @ matrix.T, rank)
    rows = u.T @ matrix
    s = rows.norm(dim=1, keepdim=True).clamp(min=1e-30)  # Of a matrix of lower rank: 0, and no division by it.
    return (u * s.T).float(), (rows / s).float()


def _top_eigenvectors(symmetric: Tensor, count: int) -> Tensor:
    """Those of the largest eigenvalues, largest first, as columns."""
    return torch.linalg.eigh(symmetric).eigenvectors[:, -count:].flip(1)


class LowRank(nn.Module):
    """The 16-bit branch W = W_r + L1 L2 (SVDQuant; QuantVSR, 3.2; QArtSR), computed as two small products.

    L1 ``(out, r)`` and L2 ``(r, in * prod(kernel))`` start as the SVD of the weight.

    Args:
        weight: ``(out, in, *kernel)``.
        rank: r, cut to the weight's own rank where that is smaller.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.kernel = weight.shape[1:]
        rank = min(rank, own_rank(weight))
        self.L1 = nn.Parameter(torch.empty(weight.shape[0], rank))
        self.L2 = nn.Parameter(torch.empty(rank, weight[0].numel()))
        if not weight.is_meta:
            self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Set L1 L2 to the best rank-r approximation of ``weight`` (Eckart-Young): U S and V^T of its SVD."""
        up, down = truncated_svd(weight.detach().flatten(1), self.L1.shape[1])
        self.L1.copy_(up)
        self.L2.copy_(down)

    def resize(self, weight: Tensor, rank: int) -> None:
        """Give the branch another rank and :meth:`reset` it.

        L1 and L2 stay the same parameters: an optimizer that holds them, but has not stepped yet, trains them on.

        Args:
            weight: ``(out, in, *kernel)``.
            rank: r, cut to the weight's own rank where that is smaller.

        Raises:
            ValueError: a rank below 1.
        """
        if rank < 1:
            raise ValueError(f"a low-rank branch has a rank of 1 or more, not {rank}")
        self._allocate(min(rank, own_rank(weight)))
        self.reset(weight)

    def _allocate(self, rank: int) -> None:
        """Room for L1 and L2 of a rank, with values still to come."""
        if rank == self.L1.shape[1]:
            return
        with torch.inference_mode(False):
            # The same parameters in another size: a stage or an optimizer may hold them already.
            self.L1.data = self.L1.data.new_empty(self.L1.shape[0], rank)
            self.L2.data = self.L2.data.new_empty(rank, self.L2.shape[1])
        self.L1.grad = self.L2.grad = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "L1")
        if stored is not None and stored.ndim == 2:
            self._allocate(stored.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def residual(self, weight: Tensor) -> Tensor:
        """W - L1 L2, in the shape of the weight."""
        return weight - _product(self.L1, self.L2).view_as(weight)

    @property
    def down(self) -> Tensor:
        """L2 as the weight of a layer with r outputs."""
        return self.L2.view(-1, *self.kernel)

    @property
    def up(self) -> Tensor:
        """L1 as the weight of a 1x1 layer."""
        return self.L1.view(*self.L1.shape, *(1 for _ in self.kernel[1:]))


class LowRankUpdate(nn.Module):
    """A trained update F1 F2 of the weight, quantized with it: it costs nothing at inference (QArtSR; EfficientDM).

    F1 ``(out, r)`` starts at 0, so that F1 F2 does; F2 ``(r, in * prod(kernel))`` is drawn with the weight's own root
    mean square (our choice), so that one learning rate for F1 suits layers of any scale.

    Args:
        weight: ``(out, in, *kernel)``.
        rank: r, cut to the weight's own rank where that is smaller.
        seed: of F2.
    """

    def __init__(self, weight: Tensor, rank: int, seed: int = 0):
        super().__init__()
        rank = min(rank, own_rank(weight))
        self.F1 = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.F2 = nn.Parameter(torch.empty(rank, weight[0].numel()))
        if not weight.is_meta:
            draw = torch.randn(self.F2.shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                self.F2.copy_(draw.to(weight.device) * weight.detach().square().mean().sqrt())

    def forward(self, weight: Tensor) -> Tensor:
        """W + F1 F2, in the shape of the weight."""
        return weight + _product(self.F1, self.F2).view_as(weight)


def _product(a: Tensor, b: Tensor) -> Tensor:
    with without_autocast(a):
        return a @ b
