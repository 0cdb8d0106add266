"""MGLD-VSR's denoiser: Stable Diffusion 2.1's UNet, inflated to clips (arXiv 2312.00853, section 3).

Every residual block is modulated by features of the low-quality latent, and the middle block mixes the frames of a
clip. The state dict has the released names (``input_blocks``, ``middle_block``, ``output_blocks``, ``out``).
"""

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from quantsr.teachers.mgldvsr.layers import (
    Conditions,
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    Stage,
    TemporalAttention,
    TemporalMixing,
    Upsample,
    norm,
)


class TimestepEmbedding(nn.Sequential):
    """Timesteps ``(n,)`` to embeddings ``(n, 4 * channels)`` of a type: sinusoids and two linear layers.

    Args:
        channels: number of sinusoids.
    """

    def __init__(self, channels: int):
        super().__init__(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.channels = channels

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        waves = get_timestep_embedding(timesteps, self.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        return super().forward(waves.to(dtype))


class VideoUNet(nn.Module):
    """The denoiser, for epsilon.

    Args:
        base_channels: channels of the first level.
        channel_multipliers: channels of every level, relative to that.
        blocks_per_level: residual blocks of a level on the way down; one more on the way up.
        attention_levels: levels (from 0) with spatial transformers; the middle block always has one.
        head_channels: channels of an attention head.
        prompt_channels: of the prompt embedding.
        structure_channels: of the structure encoder's features.
        latent_channels: of input and output.
        frames: frames of a clip.
    """

    def __init__(
        self,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        head_channels: int,
        prompt_channels: int,
        structure_channels: int,
        latent_channels: int = 4,
        frames: int = 5,
    ):
        super().__init__()
        self.frames, self.latent_channels = frames, latent_channels
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        self.time_embed = TimestepEmbedding(base_channels)

        def residual(channels: int, out_channels: int, level: int) -> ResidualBlock:
            return ResidualBlock(channels, out_channels, 4 * base_channels, structure_channels, level)

        def transformers(level: int) -> list[nn.Module]:
            return [transformer(widths[level])] if level in attention_levels else []

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, head_channels, prompt_channels)

        channels, last = base_channels, len(widths) - 1
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(latent_channels, channels, 3, padding=1)])])
        skipped = [channels]
        for level, width in enumerate(widths):
            for _ in range(blocks_per_level):
                self.input_blocks.append(Stage([residual(channels, width, level), *transformers(level)]))
                channels = width
                skipped.append(channels)
            if level < last:
                self.input_blocks.append(Stage([Downsample(channels)]))
                skipped.append(channels)
        self.middle_block = Stage(
            [
                residual(channels, channels, last),
                TemporalMixing(channels),
                transformer(channels),
                TemporalAttention(channels, head_channels),
                residual(channels, channels, last),
                TemporalMixing(channels),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks_per_level + 1):
                layers = [residual(channels + skipped.pop(), width, level), *transformers(level)]
                channels = width
                if level > 0 and block == blocks_per_level:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, latent_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, structure: Sequence[Tensor], prompt: Tensor) -> Tensor:
        """Epsilon for ``x``.

        Args:
            x: noisy latents ``(b*t, c, h, w)``, sides that divide by 2 for every level but the last.
            timesteps: ``(b*t,)``, 0 to 999.
            structure: the structure encoder's features, finest first.
            prompt: ``(b*t, tokens, prompt_channels)``.
        """
        conditions = Conditions(self.time_embed(timesteps, x.dtype), prompt, tuple(structure), self.frames)
        x = self.input_blocks[0][0](x)
        skipped = [x]
        for stage in self.input_blocks[1:]:
            x = stage(x, conditions)
            skipped.append(x)
        x = self.middle_block(x, conditions)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skipped.pop()], dim=1), conditions)
        return self.out(x)

    def blocks(self) -> list[str]:
        """Names of the blocks in execution order; together they hold every layer."""
        stages = [f"input_blocks.{i}" for i in range(len(self.input_blocks))]
        stages += ["middle_block", *(f"output_blocks.{i}" for i in range(len(self.output_blocks)))]
        layers = [f"{stage}.{i}" for stage in stages for i in range(len(self.get_submodule(stage)))]
        return ["time_embed", *layers, "out"]
