"""The seeded pipeline that turns a clean photograph into the low-quality input of a super-resolution model.

Blur, downscale, noise, JPEG: the first-order degradation model of Real-ESRGAN (Wang et al., 2021, section
3.1) with mild ranges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from quantsr.errors import UserError

DOWNSCALERS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Degradation:
    """Blur, downscale, noise and JPEG compression, each drawn anew at every call.

    Args:
        scale: how many times smaller the low-quality image is along each side.
        blur: lowest and highest standard deviation of the isotropic Gaussian, in pixels of the clean image; 0
            is no blur.
        noise: lowest and highest standard deviation of the Gaussian noise, in 1/255 of the value range.
        jpeg: lowest and highest JPEG quality, 1 to 100.

    Raises:
        UserError: if a range is not a pair, runs backwards or leaves its bounds.
    """

    scale: int = 4
    blur: tuple[float, float] = (0.4, 2.0)
    noise: tuple[float, float] = (1.0, 12.0)
    jpeg: tuple[int, int] = (50, 95)

    def __post_init__(self):
        check_scale(self)
        check_range(self, "blur", 0, math.inf)
        check_range(self, "noise", 0, 255)
        check_range(self, "jpeg", 1, 100)

    def __call__(self, gt: Tensor, rng: np.random.Generator) -> Tensor:
        """Degrade one image.

        Args:
            gt: (3, H, W) float RGB in [0, 1], H and W multiples of `scale`.
            rng: the only source of chance: a generator in the same state gives the same result.

        Returns:
            (3, H / scale, W / scale) float RGB in [0, 1], in steps of 1/255.

        Raises:
            ValueError: if H or W is not a multiple of `scale`.
        """
        check_divides(gt, self.scale)
        x = blur(gt, sigma=rng.uniform(*self.blur))
        x = downscale(x, self.scale, kernel=DOWNSCALERS[rng.integers(len(DOWNSCALERS))])
        x = add_noise(x, sigma=rng.uniform(*self.noise) / 255, rng=rng)
        return compress(x, quality=int(rng.integers(*self.jpeg, endpoint=True)))


def check_scale(settings: Any) -> None:
    """Refuse a degradation whose `scale` is no whole number from 1 up, with a UserError."""
    if not (isinstance(settings.scale, int) and settings.scale >= 1):
        raise UserError(f"{type(settings).__name__} scale must be a whole number from 1 up, not {settings.scale!r}.")


def check_range(settings: Any, name: str, lowest: float, highest: float) -> None:
    """Refuse a field of a frozen degradation that is no range within bounds, with a UserError; make it a tuple."""
    given = getattr(settings, name)
    is_pair = isinstance(given, Sequence) and len(given) == 2
    if not (is_pair and lowest <= given[0] <= given[1] <= highest):
        raise UserError(
            f"{type(settings).__name__} {name} must be two numbers [low, high] with "
            f"{lowest} <= low <= high <= {highest}, not {given!r}."
        )
    # A configuration file gives lists; tuples keep the frozen dataclass hashable.
    object.__setattr__(settings, name, tuple(given))


def check_divides(gt: Tensor, scale: int) -> None:
    """Refuse (..., H, W) whose sides are no multiples of the scale, with a ValueError."""
    height, width = gt.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"an image of {width}x{height} pixels cannot be divided by the scale {scale}")


def blur(x: Tensor, sigma: float) -> Tensor:
    """Isotropic Gaussian blur of (3, H, W), `sigma` in pixels, cut off at three sigma."""
    radius = math.ceil(3 * sigma)
    # Mirrored borders need an image larger than the kernel's arm.
    radius = min(radius, min(x.shape[-2:]) - 1)
    return gaussian_blur(x, [2 * radius + 1] * 2, [sigma] * 2) if radius > 0 else x


def downscale(x: Tensor, scale: int, kernel: str) -> Tensor:
    """Antialiased shrinking of (3, H, W) by a whole factor with one of `DOWNSCALERS`."""
    height, width = x.shape[-2:]
    # Averaging whole blocks is antialiased by itself, and torch refuses the argument there.
    antialias = kernel != "area"
    return F.interpolate(x[None], (height // scale, width // scale), mode=kernel, antialias=antialias)[0]


def add_noise(x: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma`, in the units of x, drawn per pixel and channel."""
    return x + sigma * torch.from_numpy(rng.standard_normal(tuple(x.shape), dtype=np.float32))


def compress(x: Tensor, quality: int) -> Tensor:
    """(3, h, w) through JPEG and back; values outside [0, 1] are clamped, and 8 bits remain."""
    file = BytesIO()
    Image.fromarray(rearrange(to_uint8(x), "c h w -> h w c").numpy()).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        pixels = torch.from_numpy(np.array(decoded))
    return to_float(rearrange(pixels, "h w c -> c h w").contiguous())


def to_uint8(x: Tensor) -> Tensor:
    """Float in [0, 1] to the nearest of 256 levels; values outside are clamped."""
    return x.clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(x: Tensor) -> Tensor:
    """uint8 levels to float32 in [0, 1]."""
    return x.to(torch.float32) / 255
