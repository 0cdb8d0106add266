"""Tensors as frames of a video codec, whose colour has half the size, and back."""

import av
import torch
from av.video.reformatter import Colorspace
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from quantsr.data.degradations import to_float, to_uint8


def pad_to_even(x: Tensor) -> Tensor:
    """(..., c, h, w), of three or four dimensions, with copies of the last row and column where a side is odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")


def to_video_frame(x: Tensor, colorspace: Colorspace = Colorspace.ITU601) -> av.VideoFrame:
    """(3, h, w) float RGB, clamped to [0, 1], as a frame with colour at half the size; even sides."""
    pixels = rearrange(to_uint8(x.detach()).cpu(), "c h w -> h w c").contiguous().numpy()
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=colorspace)


def from_video_frame(frame: av.VideoFrame) -> Tensor:
    """A decoded frame as upright (3, h, w) float RGB in [0, 1]."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    upright = rearrange(pixels, "h w c -> c h w").rot90(round(frame.rotation / 90), (-2, -1))
    return to_float(upright.contiguous())
