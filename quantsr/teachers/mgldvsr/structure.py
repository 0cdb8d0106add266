"""MGLD-VSR's structure encoder: multi-scale features of the low-quality latent that modulate the denoiser.

Half a UNet that knows the timestep (StableSR's time-aware encoder, arXiv 2305.07015, section 3.1, per frame), under
its released names.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from quantsr.teachers.mgldvsr.layers import Conditions, Downsample, PositionAttention, ResidualBlock, Stage
from quantsr.teachers.mgldvsr.unet import TimestepEmbedding


class StructureEncoder(nn.Module):
    """Features of every level of the low-quality latent.

    Args:
        base_channels: channels of the first level.
        channel_multipliers: channels of every level, relative to that.
        blocks_per_level: residual blocks of a level.
        attention_levels: levels (from 0) with attention; the middle block always has one.
        heads: attention heads.
        out_channels: of the features.
        latent_channels: of the input.
    """

    def __init__(
        self,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks_per_level: int,
        attention_levels: Sequence[int],
        heads: int,
        out_channels: int,
        latent_channels: int = 4,
    ):
        super().__init__()
        self.time_embed = TimestepEmbedding(base_channels)
        embedding = 4 * base_channels
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        channels = base_channels
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(latent_channels, channels, 3, padding=1)])])
        for level, width in enumerate(widths):
            for _ in range(blocks_per_level):
                attention = [PositionAttention(width, heads)] if level in attention_levels else []
                self.input_blocks.append(Stage([ResidualBlock(channels, width, embedding), *attention]))
                channels = width
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([Downsample(channels)]))
        self.middle_block = Stage(
            [
                ResidualBlock(channels, channels, embedding),
                PositionAttention(channels, heads),
                ResidualBlock(channels, channels, embedding),
            ]
        )
        self.fea_tran = nn.ModuleList([ResidualBlock(width, out_channels, embedding) for width in widths])

    def forward(self, latent: Tensor, timesteps: Tensor) -> list[Tensor]:
        """Features ``(n, out_channels, h / 2^level, w / 2^level)`` of every level, finest first.

        Args:
            latent: of the low-quality frames, ``(n, c, h, w)``.
            timesteps: ``(n,)``, 0 to 999.
        """
        conditions = Conditions(self.time_embed(timesteps, latent.dtype))
        x = self.input_blocks[0][0](latent)
        found = []
        for stage in self.input_blocks[1:]:
            if isinstance(stage[0], Downsample):
                found.append(x)
            x = stage(x, conditions)
        found.append(self.middle_block(x, conditions))
        return [block(x, conditions) for block, x in zip(self.fea_tran, found, strict=True)]

    def blocks(self) -> list[str]:
        """Names of the blocks in execution order; together they hold every layer."""
        stages = [*(f"input_blocks.{i}" for i in range(len(self.input_blocks))), "middle_block"]
        layers = [f"{stage}.{i}" for stage in stages for i in range(len(self.get_submodule(stage)))]
        return ["time_embed", *layers, *(f"fea_tran.{i}" for i in range(len(self.fea_tran)))]
