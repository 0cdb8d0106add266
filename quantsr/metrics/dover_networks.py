"""The two networks of DOVER (Wu et al., arXiv 2211.04894) for the authors' weights: no library has them.

The technical view goes through a video Swin transformer with FAST-VQA's second table of position biases (arXiv
2207.02595), the aesthetic view through a ConvNeXt inflated to clips.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import (
    ShiftedWindowAttention3d,
    SwinTransformer3d,
    shifted_window_attention_3d,
)

FRAGMENTS = 7  # of a technical view, along each side


class DoverNetwork(nn.Module):
    """Both branches: Swin-T over fragments and ConvNeXt-T over resized frames, each with a score at every place."""

    def __init__(self):
        super().__init__()
        self.technical_backbone = FragmentSwin()
        self.technical_head = _head()
        self.aesthetic_backbone = InflatedConvNeXt()
        self.aesthetic_head = _head()

    def forward(self, technical: Tensor, aesthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Views ``(n, 3, 32, 224, 224)`` and ``(1, 3, 32, 224, 224)`` to the technical and aesthetic score."""
        # A view at a time: the attention between the tokens of all windows takes 0.25 GB for each.
        per_view = [self.technical_head(self.technical_backbone(view)).mean() for view in technical.split(1)]
        return torch.stack(per_view).mean(), self.aesthetic_head(self.aesthetic_backbone(aesthetic)).mean()


def _head() -> nn.Module:
    return nn.Sequential(nn.Conv3d(768, 64, 1), nn.GELU(), nn.Conv3d(64, 1, 1))


class FragmentSwin(SwinTransformer3d):
    """Video Swin-T whose first three stages know which fragment a token is from (FAST-VQA, section 3.3)."""

    def __init__(self):
        super().__init__([2, 4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [8, 7, 7], num_classes=1, block=_swin_block)
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 3, 32, 224, 224)`` to features ``(b, 768, 16, 7, 7)``."""
        return self.norm(self.features(self.patch_embed(x))).movedim(-1, 1)


def _swin_block(channels: int, heads: int, **options) -> nn.Module:
    # In the last stage, a token is a fragment.
    options["attn_layer"] = ShiftedWindowAttention3d if heads == 24 else FragmentAttention
    return SwinTransformerBlock(channels, heads, **options)


class FragmentAttention(ShiftedWindowAttention3d):
    """Window attention with two tables of position biases: for tokens of one fragment, and of different fragments."""

    def define_relative_position_bias_table(self) -> None:
        super().define_relative_position_bias_table()
        self.fragment_position_bias_table = nn.Parameter(torch.zeros_like(self.relative_position_bias_table))

    def forward(self, x: Tensor) -> Tensor:
        """``(1, t, h, w, c)``, sides multiples of the window, to the same."""
        index = self.relative_position_index
        across, within = (
            rearrange(table[index], "i j heads -> 1 heads i j")
            for table in (self.relative_position_bias_table, self.fragment_position_bias_table)
        )
        distance = self._fragment_distance(x).unsqueeze(1)
        bias = across * distance + within * (1 - distance)
        weights = self.qkv.weight, self.proj.weight, bias, self.window_size, self.num_heads, self.shift_size
        biases = {"qkv_bias": self.qkv.bias, "proj_bias": self.proj.bias}
        return shifted_window_attention_3d(x, *weights, **biases, training=self.training)

    def _fragment_distance(self, x: Tensor) -> Tensor:
        """How many fragments apart two tokens of a window are, along the sides: ``(windows, n, n)``.

        The authors' code takes the distance where the paper has "different": 0 or 1, but 2 across a corner.
        """
        frames, height, width = x.shape[1:4]
        rows, columns = (torch.arange(side, device=x.device) * FRAGMENTS // side for side in (height, width))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).expand(frames, -1, -1, -1)
        places = places.roll([-shift for shift in self.shift_size], dims=(0, 1, 2))
        sides = dict(zip(("t1", "h1", "w1"), self.window_size, strict=True))
        places = rearrange(places, "(t t1) (h h1) (w w1) c -> (t h w) (t1 h1 w1) c", **sides)
        return (places.unsqueeze(1) - places.unsqueeze(2)).abs().sum(dim=-1).to(x.dtype)


class InflatedConvNeXt(nn.Module):
    """ConvNeXt-T (arXiv 2201.03545) over clips: pairs of frames in the stem, every third block over 3 frames."""

    def __init__(self):
        super().__init__()
        depths, channels = (3, 3, 9, 3), (96, 192, 384, 768)
        stem = nn.Sequential(nn.Conv3d(3, 96, (2, 4, 4), (2, 4, 4)), ChannelNorm(96))
        halvings = [nn.Sequential(ChannelNorm(a), nn.Conv3d(a, b, (1, 2, 2), (1, 2, 2))) for a, b in pairwise(channels)]
        self.downsample_layers = nn.ModuleList([stem, *halvings])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(c, frames=3 if i % 3 == 1 else 1) for i in range(depth)))
            for depth, c in zip(depths, channels, strict=True)
        )
        self.norm = ChannelNorm(768)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, 3, 32, 224, 224)`` to features ``(b, 768, 16, 7, 7)``."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.norm(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over ``frames`` x 7 x 7, then an MLP over channels."""

    def __init__(self, channels: int, frames: int):
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, (frames, 7, 7), padding=(frames // 2, 3, 3), groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).movedim(1, -1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).movedim(-1, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of ``(b, c, t, h, w)``."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
