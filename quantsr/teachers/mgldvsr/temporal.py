"""Mixing of neighbouring frames, the layer that MGLD-VSR adds to an image UNet and an image decoder."""

import torch
from einops import rearrange
from torch import Tensor, nn


class TemporalConv(nn.Module):
    """Blend of every pixel with a convolution over its previous, own and next frame.

        y = alpha * conv(x) + (1 - alpha) * x

    As in the code released with MGLD-VSR (arXiv 2312.00853): a 3x1x1 convolution with zero padding and one learned
    alpha. Alpha starts at 0, the identity (our choice; the released code leaves it uninitialized).

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.temporal_conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.temporal_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Mix the frames of each clip.

        Args:
            x: clips of ``frames`` frames, one after the other in the batch, ``(b*frames, c, h, w)``.
            frames: length of a clip.

        Raises:
            ValueError: the batch is not a whole number of clips.
        """
        if x.shape[0] % frames:
            raise ValueError(f"a batch of {x.shape[0]} frames cannot be cut into clips of {frames}")
        mixed = self.temporal_conv(rearrange(x, "(b t) c h w -> b c t h w", t=frames))
        mixed = rearrange(mixed, "b c t h w -> (b t) c h w")
        return self.temporal_alpha * mixed + (1 - self.temporal_alpha) * x
