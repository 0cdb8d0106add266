"""The building blocks of MGLD-VSR's two networks, with the released names (arXiv 2312.00853; the layout is that of
latent diffusion's UNet, arXiv 2112.10752).

Frames of clips are in the batch axis, clip after clip: ``(b*t, c, h, w)``.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from torch import Tensor, nn

from quantsr.teachers.mgldvsr.temporal import TemporalConv

GROUPS = 32
MODULATION_CHANNELS = 128


@dataclass(frozen=True)
class Conditions:
    """What the layers of a network look at beside their input.

    Attributes:
        embedding: of the timestep, ``(b*t, e)``.
        prompt: ``(b*t, tokens, d)``, for cross attention.
        structure: features of the low-quality latent by level, finest first, each ``(b*t, s, h, w)``.
        frames: t, frames of one clip.
    """

    embedding: Tensor
    prompt: Tensor | None = None
    structure: tuple[Tensor, ...] = ()
    frames: int = 1


def norm(channels: int) -> nn.GroupNorm:
    """Group normalization as all these networks have it."""
    return nn.GroupNorm(GROUPS, channels)


class Spade(nn.Module):
    """Spatially adaptive normalization (SPADE, arXiv 1903.07291): norm(x) (1 + gamma(s)) + beta(s).

    Args:
        channels: of x.
        structure_channels: of the features s, which have the height and width of x.
    """

    def __init__(self, channels: int, structure_channels: int):
        super().__init__()
        self.param_free_norm = norm(channels)
        self.mlp_shared = nn.Sequential(nn.Conv2d(structure_channels, MODULATION_CHANNELS, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(MODULATION_CHANNELS, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(MODULATION_CHANNELS, channels, 3, padding=1)

    def forward(self, x: Tensor, structure: Tensor) -> Tensor:
        hidden = self.mlp_shared(structure)
        return torch.addcmul(self.mlp_beta(hidden), self.param_free_norm(x), 1 + self.mlp_gamma(hidden))


class ResidualBlock(nn.Module):
    """Residual block with a timestep embedding and, where ``structure_channels`` is given, SPADE on its branch.

    Args:
        channels, out_channels: before and after.
        embedding_channels: of the timestep embedding.
        structure_channels: of the features that modulate; None for none.
        level: which of the features.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding_channels: int,
        structure_channels: int | None = None,
        level: int = 0,
    ):
        super().__init__()
        self.level = level
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        self.spade = Spade(out_channels, structure_channels) if structure_channels is not None else None
        # The released layout has dropout (of 0) in third place.
        last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(norm(out_channels), nn.SiLU(), nn.Identity(), last)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(conditions.embedding)[..., None, None]
        h = self.out_layers(h)
        if self.spade is not None:
            h = self.spade(h, conditions.structure[self.level])
        return self.skip_connection(x) + h


class Downsample(nn.Module):
    """Half the height and width, by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the height and width: pixels repeated, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class SpatialTransformer(Transformer2DModel):
    """diffusers' transformer block over the positions of every frame, with cross attention to the prompt."""

    def __init__(self, channels: int, head_channels: int, prompt_channels: int):
        super().__init__(
            num_attention_heads=channels // head_channels,
            attention_head_dim=head_channels,
            in_channels=channels,
            cross_attention_dim=prompt_channels,
            norm_num_groups=GROUPS,
            use_linear_projection=True,
        )

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        return super().forward(x, encoder_hidden_states=conditions.prompt, return_dict=False)[0]


class TemporalMixing(TemporalConv):
    """The temporal convolution as a layer of a network."""

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        return super().forward(x, conditions.frames)


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip at every position, mixed in by a learned share.

    Args:
        channels: of the features.
        head_channels: channels of one head.
    """

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.temporal_attn = Attention(channels, heads=channels // head_channels, dim_head=head_channels)
        self.norm = nn.LayerNorm(channels)
        # Starts as the identity (our choice: the released code leaves it uninitialized).
        self.temporal_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        sizes = {"t": conditions.frames, "h": x.shape[-2], "w": x.shape[-1]}
        tokens = rearrange(x, "(b t) c h w -> (b h w) t c", **sizes)
        mixed = rearrange(self.temporal_attn(self.norm(tokens)), "(b h w) t c -> (b t) c h w", **sizes)
        return self.temporal_alpha * mixed + (1 - self.temporal_alpha) * x


class PositionAttention(nn.Module):
    """Self-attention over the positions of every frame, as in the structure encoder.

    Args:
        channels: of the features.
        heads: number of heads.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        qkv = self.qkv(self.norm(x.flatten(2)))
        q, k, v = rearrange(qkv, "n (heads part c) p -> part n heads p c", heads=self.heads, part=3)
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "n heads p c -> n (heads c) p")
        return x + self.proj_out(attended).view_as(x)


class Stage(nn.ModuleList):
    """Layers that run one after the other, named by their numbers."""

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        for layer in self:
            x = layer(x, conditions)
        return x
