"""The 16-bit low-rank branch beside the low-bit weight: W = W_r + L1 L2 (SVDQuant; QuantVSR and QArtSR, 3.2)."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """L1 ``(out, r)`` and L2 ``(r, in * prod(kernel))``, from the SVD of the weight; computed as two small products.

    Args:
        weight: ``(out, in, *kernel)``.
        rank: r, cut to the weight's own rank where that is smaller.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        self.kernel = weight.shape[1:]
        rank = min(rank, weight.shape[0], weight[0].numel())
        self.L1 = nn.Parameter(torch.empty(weight.shape[0], rank))
        self.L2 = nn.Parameter(torch.empty(rank, weight[0].numel()))
        if not weight.is_meta:
            self.reset(weight)

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Set L1 L2 to the best rank-r approximation of ``weight`` (Eckart-Young): U S and V^T of its SVD."""
        u, s, vh = torch.linalg.svd(weight.detach().flatten(1).float(), full_matrices=False)
        rank = self.L1.shape[1]
        self.L1.copy_(u[:, :rank] * s[:rank])
        self.L2.copy_(vh[:rank])

    def residual(self, weight: Tensor) -> Tensor:
        """W - L1 L2, in the shape of the weight."""
        with torch.autocast(weight.device.type, enabled=False):  # Codes do not depend on how a layer is called.
            return weight - (self.L1 @ self.L2).view_as(weight)

    @property
    def down(self) -> Tensor:
        """L2 as the weight of a layer with r outputs."""
        return self.L2.view(-1, *self.kernel)

    @property
    def up(self) -> Tensor:
        """L1 as the weight of a 1x1 layer."""
        return self.L1.view(*self.L1.shape, *(1 for _ in self.kernel[1:]))
