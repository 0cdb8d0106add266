"""Distances in pixels: PSNR and SSIM on luma, as super-resolution papers report them, and PSNR on RGB.

The figures are those of pyiqa with ``test_y_channel=True, color_space='ycbcr'`` and no border crop.
Everything is computed in float64: published figures are compared to four digits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio

from quantsr.errors import UserError

WINDOW = 11  # side of SSIM's Gaussian window, pixels
SIGMA = 1.5  # its standard deviation, pixels
PSNR_CAP = 100.0  # dB, what `psnr` gives for identical images


def luma(image: Tensor) -> Tensor:
    """Y of ITU-R BT.601, limited range.

    Args:
        image: RGB in [0, 1], ``(b, 3, h, w)``.

    Returns:
        ``(b, 1, h, w)``, float64, black 16 and white 235, not rounded.
    """
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=image.device)
    return torch.einsum("bchw,c->bhw", image.double(), weights).unsqueeze(1) + 16


def psnr_y(sr: Tensor, gt: Tensor) -> Tensor:
    """PSNR on luma, dB.

    pyiqa adds 1e-8 to the squared error (of values in [0, 1]), so identical images give 80 dB; at 30 dB that
    makes 0.00004 dB, enough to move the fourth digit.

    Args:
        sr: RGB in [0, 1], ``(b, 3, h, w)``.
        gt: the same.

    Returns:
        ``(b,)``, float64.

    Raises:
        UserError: the shapes differ.
    """
    check_same_shape(sr, gt)
    error = ((luma(sr) - luma(gt)) / 255).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error + 1e-8)


def ssim_y(sr: Tensor, gt: Tensor) -> Tensor:
    """SSIM on luma (Wang et al., 2004): Gaussian windows that lie wholly inside the image.

    Two habits of pyiqa, without which its figures are missed in the third digit: Y is rounded to integers,
    and a negative contrast-structure term counts as zero.

    Args:
        sr: RGB in [0, 1], ``(b, 3, h, w)``, at least 11 pixels high and wide.
        gt: the same.

    Returns:
        ``(b,)``, float64, in [0, 1].

    Raises:
        UserError: the shapes differ, or the images are smaller than the window.
    """
    check_same_shape(sr, gt)
    if min(sr.shape[-2:]) < WINDOW:
        height, width = sr.shape[-2:]
        raise UserError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, got {width}x{height}")
    x, y = luma(sr).round(), luma(gt).round()
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = window_means(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    variances = mean_xx - mean_x**2 + mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * contrast_structure.relu()).mean(dim=(1, 2))


def window_means(maps: Tensor) -> tuple[Tensor, ...]:
    """Gaussian-weighted means over all windows inside a map: ``(b, n, h, w)`` to n of ``(b, h-10, w-10)``."""
    distance = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * SIGMA**2))
    kernel = (weights / weights.sum()).expand(maps.shape[1], 1, WINDOW)
    rows = F.conv2d(maps, kernel.unsqueeze(-1), groups=maps.shape[1])
    return F.conv2d(rows, kernel.unsqueeze(-2), groups=maps.shape[1]).unbind(dim=1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR over all channels, dB: how closely a student follows its teacher.

    Args:
        a: values in [0, 1], ``(b, c, h, w)``.
        b: the same.

    Returns:
        ``(b,)``, float64, at most 100 (identical images), so that means stay finite.

    Raises:
        UserError: the shapes differ.
    """
    check_same_shape(a, b)
    decibels = peak_signal_noise_ratio(a.double(), b.double(), data_range=1.0, reduction="none", dim=(1, 2, 3))
    return decibels.clamp(max=PSNR_CAP)


def check_same_shape(a: Tensor, b: Tensor) -> None:
    """Raises: UserError with both sizes if ``a`` and ``b`` differ in shape."""
    if a.shape != b.shape:
        raise UserError(f"images to compare must have one size, got {tuple(a.shape)} and {tuple(b.shape)}")


class ImageMean(Metric):
    """The mean of ``measure`` over images, whatever the batches and processes they came in.

    Attributes:
        measure: function of two image batches ``(b, c, h, w)`` that returns ``(b,)``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    measure: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of images, each ``(b, c, h, w)`` in [0, 1]."""
        values = self.measure(preds, target)
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """The mean so far, a float64 scalar; NaN before the first image."""
        return self.total / self.count


class PSNRY(ImageMean):
    """Mean :func:`psnr_y` over images."""

    measure = staticmethod(psnr_y)


class SSIMY(ImageMean):
    """Mean :func:`ssim_y` over images."""

    measure = staticmethod(ssim_y)


class FidelityPSNR(ImageMean):
    """Mean :func:`psnr` over images, of student outputs against teacher outputs."""

    measure = staticmethod(psnr)
