"""The seeded pipeline that turns a clean clip into the low-quality input of a video super-resolution model.

Blur, downscale, noise, video compression: the degradation of one image (`quantsr.data.degradations`), the
same for all frames of a clip, with a video codec in the place of JPEG, as RealBasicVSR has it (Chan et al.,
2022, section 3.1); one order, with mild ranges.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from torch import Tensor

from quantsr.data.degradations import (
    DOWNSCALERS,
    add_noise,
    blur,
    check_divides,
    check_range,
    check_scale,
    downscale,
    to_float,
    to_uint8,
)
from quantsr.data.yuv import from_video_frame, pad_to_even, to_video_frame

FRAME_RATE = Fraction(25)


@dataclass(frozen=True)
class ClipDegradation:
    """Blur, downscale, noise and H.264 compression, each drawn once for a clip.

    Only the noise itself is drawn anew for every frame.

    Args:
        scale: how many times smaller a low-quality frame is along each side.
        blur: lowest and highest standard deviation of the isotropic Gaussian, in pixels of the clean clip; 0
            is no blur.
        noise: lowest and highest standard deviation of the Gaussian noise, in 1/255 of the value range.
        crf: lowest and highest constant rate factor of the codec, 0 (nothing lost) to 51; None leaves
            compression out.

    Raises:
        UserError: if a range is not a pair, runs backwards or leaves its bounds.
    """

    scale: int = 4
    blur: tuple[float, float] = (0.4, 2.0)
    noise: tuple[float, float] = (1.0, 12.0)
    crf: tuple[int, int] | None = (18, 33)

    def __post_init__(self):
        check_scale(self)
        check_range(self, "blur", 0, math.inf)
        check_range(self, "noise", 0, 255)
        if self.crf is not None:
            check_range(self, "crf", 0, 51)

    def __call__(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        """Degrade one clip.

        Args:
            gt: (t, 3, H, W) float RGB in [0, 1], H and W multiples of `scale`.
            rng: the only source of chance: a generator in the same state gives the same result.

        Returns:
            (t, 3, H / scale, W / scale) float RGB in [0, 1], in steps of 1/255.

        Raises:
            ValueError: if H or W is not a multiple of `scale`.
        """
        check_divides(gt, self.scale)
        sigma, kernel = rng.uniform(*self.blur), DOWNSCALERS[rng.integers(len(DOWNSCALERS))]
        # Frame by frame: a long clip at full size, blurred at once, would need its memory many times over.
        x = torch.stack([downscale(blur(frame, sigma), self.scale, kernel) for frame in gt])
        x = add_noise(x, sigma=rng.uniform(*self.noise) / 255, rng=rng)
        if self.crf is None:
            return to_float(to_uint8(x))
        return compress_clip(x, crf=int(rng.integers(*self.crf, endpoint=True)))


def compress_clip(x: Tensor, crf: int) -> Tensor:
    """(t, 3, h, w) through H.264 and back, in memory; values outside [0, 1] are clamped, and 8 bits remain.

    Where PyAV was built without x264, MPEG-4 part 2 of about the same quantization step stands in.
    """
    height, width = x.shape[-2:]
    encoder, decoder = _codecs(crf)
    x = pad_to_even(x)
    encoder.width, encoder.height, encoder.pix_fmt = x.shape[-1], x.shape[-2], "yuv420p"
    encoder.framerate, encoder.time_base = FRAME_RATE, 1 / FRAME_RATE
    packets = [packet for frame in map(to_video_frame, x) for packet in encoder.encode(frame)]
    packets += encoder.encode(None)
    decoder.extradata = encoder.extradata
    frames = [from_video_frame(frame) for packet in (*packets, None) for frame in decoder.decode(packet)]
    return torch.stack(frames)[..., :height, :width].contiguous()


def _codecs(crf: int) -> tuple[av.VideoCodecContext, av.VideoCodecContext]:
    """An encoder and its decoder, on one thread each: with more, the result may depend on their number."""
    if "libx264" in av.codecs_available:
        # Macroblock-tree rate control reads memory that was never written: its result differs between processes.
        names, options = ("libx264", "h264"), {"crf": str(crf), "mbtree": "0"}
    else:
        # The step of H.264 doubles every six quantizer values and is that of MPEG-4 at 12.
        step = str(min(max(round(2 ** ((crf - 12) / 6)), 1), 31))
        names, options = ("mpeg4", "mpeg4"), {"qmin": step, "qmax": step}
    encoder, decoder = (av.CodecContext.create(name, mode) for name, mode in zip(names, "wr", strict=True))
    encoder.thread_count = decoder.thread_count = 1
    encoder.options = options
    return encoder, decoder
