"""The video autoencoder of MGLD-VSR (arXiv 2312.00853).

Stable Diffusion's autoencoder with two additions to the decoder: a temporal convolution after each residual block, and
controllable feature wrapping (CFW, StableSR, arXiv 2305.07015), which adds what the encoder saw at full detail back in.
Modules are named as in the released weights, so those load as they are.

The frames of clips lie one after the other in the batch: ``(b*frames, c, h, w)``.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.teachers.mgldvsr.autoencoder_layers import Downsample, Fusion, Upsample, chain, middle, normalization
from quantsr.teachers.mgldvsr.temporal import TemporalConv


class Encoder(nn.Module):
    """Images to features at ``len(widths)`` resolutions, each half the one before, and to latent moments.

    Args:
        widths: channels of each level, the full resolution first.
        base_channels: of the first convolution.
        blocks_per_level: residual blocks of each level.
        outputs: channels of the result.
    """

    def __init__(self, widths: Sequence[int], base_channels: int, blocks_per_level: int, outputs: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        for channels, width in pairwise([base_channels, *widths]):
            self.down.append(nn.ModuleDict({"block": chain(channels, width, blocks_per_level)}))
        for level, width in zip(self.down[:-1], widths[:-1], strict=True):
            level["downsample"] = Downsample(width)
        self.mid = middle(widths[-1])
        self.norm_out = normalization(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def features(self, images: Tensor) -> list[Tensor]:
        """What the last block of each level gives, before downsampling.

        Args:
            images: ``(n, 3, h, w)`` in [-1, 1].

        Returns:
            level i: ``(n, widths[i], h / 2**i, w / 2**i)``.
        """
        x = self.conv_in(images)
        features = []
        for level in self.down:
            for block in level["block"]:
                x = block(x)
            features.append(x)
            if "downsample" in level:
                x = level["downsample"](x)
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The result at the lowest resolution, and those of the :meth:`features` on the way that a decoder fuses: of
        all levels but the first and the last."""
        features = self.features(images)
        x = features[-1]
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x))), features[1:-1]

    def blocks(self) -> list[str]:
        """Names of the blocks in execution order."""
        names = ["conv_in"]
        for number, level in enumerate(self.down):
            names += [f"down.{number}.block.{i}" for i in range(len(level["block"]))]
            names += [f"down.{number}.downsample"] if "downsample" in level else []
        return [*names, "mid.block_1", "mid.attn_1", "mid.block_2", "conv_out"]


class Decoder(nn.Module):
    """Latents to images; the temporal convolutions mix the frames of a clip, inner levels fuse the encoder's features.

    Args:
        widths: channels of each level, the full resolution first.
        blocks_per_level: residual blocks of each level of the encoder; the decoder has one more.
        latent_channels: channels of the input.
        frames: length of a clip.
        fusion_weight: how much of the fusion's correction to add.
    """

    def __init__(
        self, widths: Sequence[int], blocks_per_level: int, latent_channels: int, frames: int, fusion_weight: float
    ):
        super().__init__()
        self.frames, self.fused = frames, range(1, len(widths) - 1)
        count = blocks_per_level + 1
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        self.temporal_mixing = TemporalConv(widths[-1])
        self.up = nn.ModuleList()
        for width, channels in pairwise([*widths, widths[-1]]):
            mixing = nn.ModuleList(TemporalConv(width) for _ in range(count))
            self.up.append(nn.ModuleDict({"block": chain(channels, width, count), "temporal_mixing": mixing}))
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level["upsample"] = Upsample(width)
        for number in self.fused:
            self.add_module(f"fusion_layer_{number}", Fusion(widths[number], fusion_weight))
        self.norm_out = normalization(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor, features: Sequence[Tensor]) -> Tensor:
        """``features``: of the encoder's levels but the first and the last, in the order of the levels."""
        wrapped = dict(zip(self.fused, features, strict=True))
        x = self.mid["block_1"](self.conv_in(latent))
        x = self.mid["attn_1"](self.temporal_mixing(x, self.frames))
        x = self.mid["block_2"](x)
        for number, level in reversed(list(enumerate(self.up))):
            for block, mixing in zip(level["block"], level["temporal_mixing"], strict=True):
                x = mixing(block(x), self.frames)
            if number in wrapped:
                x = getattr(self, f"fusion_layer_{number}")(wrapped[number], x)
            if "upsample" in level:
                x = level["upsample"](x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def blocks(self) -> list[str]:
        """Names of the blocks in execution order."""
        names = ["conv_in", "mid.block_1", "temporal_mixing", "mid.attn_1", "mid.block_2"]
        for number, level in reversed(list(enumerate(self.up))):
            for i in range(len(level["block"])):
                names += [f"up.{number}.block.{i}", f"up.{number}.temporal_mixing.{i}"]
            names += [f"fusion_layer_{number}"] if number in self.fused else []
            names += [f"up.{number}.upsample"] if "upsample" in level else []
        return [*names, "conv_out"]


class VideoAutoencoder(nn.Module):
    """Encoder of single images and decoder of clips.

    Args:
        base_channels: channels of level 0 are this times its multiplier; a multiple of 32.
        channel_multipliers: one for each level; a level has half the resolution of the one before.
        blocks_per_level: residual blocks of each level of the encoder.
        latent_channels: of the latent.
        frames: length of a clip.
        fusion_weight: how much of the encoder's detail the decoder adds (CFW's w), 0 to 1.

    Attributes:
        factor: how many image pixels one latent pixel spans.
    """

    def __init__(
        self,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int,
        latent_channels: int = 4,
        frames: int = 5,
        fusion_weight: float = 1.0,
    ):
        super().__init__()
        self.factor = 2 ** (len(channel_multipliers) - 1)
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        self.encoder = Encoder(widths, base_channels, blocks_per_level, 2 * latent_channels)
        self.decoder = Decoder(widths, blocks_per_level, latent_channels, frames, fusion_weight)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images to the posterior of their latents.

        Args:
            images: ``(n, 3, h, w)`` in [-1, 1], h and w multiples of :attr:`factor`.

        Returns:
            moments ``(n, 2*latent_channels, h / factor, w / factor)``, means before log variances, and the features
            for :meth:`decode`: of the encoder's levels but the first and the last (1 and 2 at full size).

        Raises:
            ValueError: a size that is not a multiple of :attr:`factor`.
        """
        if images.shape[-2] % self.factor or images.shape[-1] % self.factor:
            raise ValueError(f"image size {tuple(images.shape[-2:])} is not a multiple of {self.factor}")
        moments, features = self.encoder(images)
        return self.quant_conv(moments), features

    def decode(self, latent: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Latents of clips to images.

        Args:
            latent: ``(b*frames, latent_channels, h', w')``.
            features: what :meth:`encode` gave for the clips' low-quality frames, upscaled to the output's size.

        Returns:
            images ``(b*frames, 3, factor * h', factor * w')``, about [-1, 1].

        Raises:
            ValueError: the batch is not a whole number of clips, or too few or too many features.
        """
        return self.decoder(self.post_quant_conv(latent), features)

    def blocks(self) -> dict[str, list[str]]:
        """Blocks of ``encoder`` and ``decoder``, each in execution order; they hold every layer with weights."""
        return {
            "encoder": [*(f"encoder.{name}" for name in self.encoder.blocks()), "quant_conv"],
            "decoder": ["post_quant_conv", *(f"decoder.{name}" for name in self.decoder.blocks())],
        }
