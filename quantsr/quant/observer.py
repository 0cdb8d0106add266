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
