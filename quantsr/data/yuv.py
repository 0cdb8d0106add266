"""Tensors as frames of a video codec, whose colour has half the size, and back.

Between RGB and the planes of a frame stand the matrices of ITU-R BT.601 and BT.709, applied here in whole numbers,
so that a pixel's value does not depend on the processor or on how FFmpeg was built.
"""

from functools import cache

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from einops import reduce, repeat
from torch import Tensor
from torch.nn import functional as F

from quantsr.data.degradations import to_float, to_uint8

LUMA_WEIGHTS = {Colorspace.ITU601: (0.299, 0.587, 0.114), Colorspace.ITU709: (0.2126, 0.7152, 0.0722)}
"""Shares of red, green and blue in the brightness."""
MATRICES = {1: Colorspace.ITU709, 2: Colorspace.ITU601, 5: Colorspace.ITU601, 6: Colorspace.ITU601}
"""By the number that a frame says (ITU-T H.273, table 4); 2 is a frame that does not say."""
BITS = 16
"""Of the fraction of a whole-number coefficient."""


def pad_to_even(x: Tensor) -> Tensor:
    """(..., c, h, w), of three or four dimensions, with copies of the last row and column where a side is odd."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")


def to_video_frame(x: Tensor, colorspace: Colorspace = Colorspace.ITU601) -> av.VideoFrame:
    """(3, h, w) float RGB, clamped to [0, 1], as a yuv420p frame of limited range; even sides.

    A colour value is the mean of its four pixels. `colorspace` is ITU601 or ITU709.
    """
    levels = to_uint8(x.detach()).cpu().to(torch.int32)
    luma, *chroma = torch.einsum("y r, r h w -> y h w", _coefficients(colorspace), levels)
    chroma = reduce(torch.stack(chroma), "c (h 2) (w 2) -> c h w", "sum")
    planes = [16 + _whole(luma, BITS).flatten(), 128 + _whole(chroma, BITS + 2).flatten()]
    pixels = torch.cat(planes).to(torch.uint8).view(-1, x.shape[-1]).numpy()
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
    frame.colorspace, frame.color_range = colorspace, ColorRange.MPEG
    return frame


def from_video_frame(frame: av.VideoFrame) -> Tensor:
    """A decoded frame as upright (3, h, w) float RGB in [0, 1]; a colour value holds for its four pixels."""
    # Other formats, rare in files, are left to FFmpeg.
    known = frame.format.name == "yuv420p" and frame.colorspace in MATRICES and frame.color_range != ColorRange.JPEG
    if known and frame.height % 2 == frame.width % 2 == 0:
        pixels = _rgb(frame)
    else:
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    return to_float(pixels.rot90(round(frame.rotation / 90), (-2, -1)).contiguous())


def _rgb(frame: av.VideoFrame) -> Tensor:
    height, width = frame.height, frame.width
    planes = torch.from_numpy(frame.to_ndarray()).to(torch.int32)
    luma, chroma = planes[None, :height] - 16, planes[height:].reshape(2, height // 2, width // 2) - 128
    yuv = torch.cat([luma, repeat(chroma, "c h w -> c (h 2) (w 2)")])
    levels = torch.einsum("r y, y h w -> r h w", _coefficients(MATRICES[frame.colorspace], inverse=True), yuv)
    return _whole(levels, BITS).clamp(0, 255).to(torch.uint8)


@cache
def _coefficients(colorspace: Colorspace, inverse: bool = False) -> Tensor:
    """(3, 3) int32 in steps of 2^-BITS: levels of RGB (0 to 255) to Y - 16, Cb - 128 and Cr - 128, or back."""
    red, _, blue = torch.eye(3, dtype=torch.float64)
    luma = torch.tensor(LUMA_WEIGHTS[colorspace], dtype=torch.float64)
    of_red, _, of_blue = LUMA_WEIGHTS[colorspace]
    differences = [(blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)]
    matrix = torch.stack([luma * 219, *(difference * 224 for difference in differences)]) / 255
    matrix = matrix.inverse() if inverse else matrix
    return (matrix * 2**BITS).round().to(torch.int32)


def _whole(x: Tensor, bits: int) -> Tensor:
    """To the nearest whole number, halves up: x counts steps of 2^-bits."""
    return (x + 2 ** (bits - 1)) >> bits
