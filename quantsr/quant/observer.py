"""What finds its range or scale by looking at data: it takes notes of a batch, and takes them in when that is over."""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Observer(nn.Module):
    """Notes of one batch, however often the model calls it meanwhile: every step of a sampling, every tile.

    All notes are maxima, so that those of several calls, and of several devices, join by an element-wise maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pending: Tensor | None = None

    def note(self, maxima: Tensor) -> None:
        """Add what one call has seen to the notes of the batch."""
        self.pending = maxima if self.pending is None else torch.maximum(self.pending, maxima)

    @abstractmethod
    def absorb(self, pending: Tensor) -> None:
        """Take the notes of one batch over all devices into the range or scale."""


SMALLEST_SHARE = 0.01
"""Of a scale's root mean square: training takes no entry below it (our choice)."""


class Scale(Observer):
    """A positive scale per channel or position, averaged over calibration batches; then it may train.

    Args:
        size: its length.
        momentum: weight of the past in the running average.
    """

    def __init__(self, size: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.scale = nn.Parameter(torch.full((size,), torch.nan))

    @property
    def calibrated(self) -> bool:
        """Whether it is known."""
        return self.scale.numel() > 0 and not self.scale.isnan().any()

    @torch.no_grad()
    def average(self, scale: Tensor) -> None:
        """Take the scale of one batch into the running average."""
        self.scale.copy_(torch.where(self.scale.isnan(), scale, self.scale.lerp(scale, 1 - self.momentum)))

    @torch.no_grad()
    def keep_positive(self) -> None:
        """After a training step: one factor is divided by the scale, so that no entry may come near 0 or cross it."""
        self.scale.copy_(torch.maximum(self.scale, SMALLEST_SHARE * self.scale.square().mean().sqrt()))
