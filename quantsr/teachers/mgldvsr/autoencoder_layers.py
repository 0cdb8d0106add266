"""The building blocks of MGLD-VSR's video autoencoder, with the released names.

Stable Diffusion's, and controllable feature wrapping (CFW, StableSR, arXiv 2305.07015). They look at every frame alone:
``(n, c, h, w)``.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

GROWTH = 32
"""Channels that each convolution of a dense block adds."""


def normalization(channels: int) -> nn.GroupNorm:
    """Stable Diffusion's group normalization; ``channels`` has to be a multiple of 32."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))).

    Args:
        channels: of the input.
        width: of the output; a 1x1 convolution fits the skip connection where it differs.
        shortcut: the released name of that convolution.
    """

    def __init__(self, channels: int, width: int, shortcut: str = "nin_shortcut"):
        super().__init__()
        self.norm1 = normalization(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = normalization(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = shortcut if channels != width else None
        if self.shortcut:
            self.add_module(self.shortcut, nn.Conv2d(channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return (getattr(self, self.shortcut)(x) if self.shortcut else x) + residual


class Attention(nn.Module):
    """x + self-attention of one head over all positions of an image."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = normalization(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normalized = self.norm(x)
        # The kernels that do not hold the whole attention matrix need channels next to each other in memory.
        query, key, value = (
            rearrange(layer(normalized), "n c h w -> n 1 (h w) c").contiguous() for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(rearrange(attended, "n 1 (h w) c -> n c h w", h=x.shape[-2]))


class Downsample(nn.Module):
    """Half the height and width, by a strided convolution padded at the right and at the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DenseBlock(nn.Module):
    """Residual dense block of ESRGAN (arXiv 1809.00219): each of five convolutions sees all before it."""

    def __init__(self, channels: int):
        super().__init__()
        for number in range(5):
            width = GROWTH if number < 4 else channels
            self.add_module(f"conv{number + 1}", nn.Conv2d(channels + number * GROWTH, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], dim=1)
        return x + 0.2 * self.conv5(seen)


class Fusion(nn.Module):
    """CFW: decoder features plus ``weight`` times a correction computed from them and the encoder's features."""

    def __init__(self, channels: int, weight: float):
        super().__init__()
        self.weight = weight
        self.encode_enc_1 = ResidualBlock(2 * channels, channels, shortcut="conv_out")
        self.encode_enc_2 = nn.Sequential(DenseBlock(channels), DenseBlock(channels))
        self.encode_enc_3 = ResidualBlock(channels, channels)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Both of shape ``(n, channels, h, w)``, and so is the result."""
        correction = self.encode_enc_1(torch.cat([encoded, decoded], dim=1))
        return decoded + self.weight * self.encode_enc_3(self.encode_enc_2(correction))


def middle(channels: int) -> nn.ModuleDict:
    """The blocks at the lowest resolution."""
    return nn.ModuleDict(
        {
            "block_1": ResidualBlock(channels, channels),
            "attn_1": Attention(channels),
            "block_2": ResidualBlock(channels, channels),
        }
    )


def chain(channels: int, width: int, count: int) -> nn.ModuleList:
    """``count`` residual blocks from ``channels`` to ``width``."""
    return nn.ModuleList(ResidualBlock(channels if i == 0 else width, width) for i in range(count))
