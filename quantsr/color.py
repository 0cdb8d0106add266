"""Colour correction: give a super-resolved image the colours of its low-quality input.

Diffusion models drift in colour. Both corrections are those that StableSR (Wang et al., 2023) offers and that
OSEDiff took over; both are differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.errors import UserError

COLOR_FIXES = ("none", "adain", "wavelet")
VARIANCE_FLOOR = 1e-5  # keeps a flat channel from dividing by zero
STRIP = 512
"""Rows that are blurred at a time: what blurring takes beside the image stays small."""


def adain(image: Tensor, reference: Tensor) -> Tensor:
    """Give every channel of ``image`` the mean and standard deviation that it has in ``reference``.

    Args:
        image: ``(b, c, h, w)``.
        reference: ``(b, c, h, w)``, here the input enlarged by bicubic interpolation.

    Returns:
        The corrected image, ``(b, c, h, w)``; values can leave [0, 1].
    """
    variance, mean = torch.var_mean(image, dim=(-2, -1), keepdim=True)
    reference_variance, reference_mean = torch.var_mean(reference, dim=(-2, -1), keepdim=True)
    gain = ((reference_variance + VARIANCE_FLOOR) / (variance + VARIANCE_FLOOR)).sqrt()
    return (image - mean) * gain + reference_mean


def wavelet(image: Tensor, reference: Tensor, levels: int = 5) -> Tensor:
    """Keep the details of ``image`` and take everything coarser from ``reference``.

    Args:
        image: ``(b, c, h, w)``.
        reference: ``(b, c, h, w)``, here the input enlarged by bicubic interpolation.
        levels: number of blurs; what is coarser than about ``2 ** levels`` pixels comes from the reference.

    Returns:
        The corrected image, ``(b, c, h, w)``; values can leave [0, 1].
    """
    height, reach = image.shape[-2], 2**levels - 1
    fixed = torch.empty_like(image)
    for top in range(0, height, STRIP):
        bottom, above = min(top + STRIP, height), min(top, reach)
        rows = slice(top - above, bottom + reach)
        # Blurring is linear: one blur of the difference does for both.
        coarse = low_frequencies(image[..., rows, :] - reference[..., rows, :], levels)
        fixed[..., top:bottom, :] = image[..., top:bottom, :] - coarse[..., above : above + bottom - top, :]
    return fixed


def low_frequencies(image: Tensor, levels: int) -> Tensor:
    """The coarse part of the a-trous wavelet transform: ever wider binomial blurs, borders replicated.

    Args:
        image: ``(b, c, h, w)``.
        levels: number of blurs; blur i has its 3x3 taps ``2 ** i`` pixels apart.
    """
    for level in range(levels):
        for axis in (-2, -1):
            image = _blur(image, 2**level, axis)
    return image


def _blur(image: Tensor, step: int, axis: int) -> Tensor:
    """1/4, 1/2, 1/4 of pixels ``step`` apart along one axis."""
    # By sums: on CPUs, a dilated convolution takes nine times the image's memory.
    pad = (0, 0, step, step) if axis == -2 else (step, step, 0, 0)
    padded, length = F.pad(image, pad, mode="replicate"), image.shape[axis]
    sides = padded.narrow(axis, 0, length) + padded.narrow(axis, 2 * step, length)
    return sides.mul_(0.25).add_(image, alpha=0.5)


def fix_color(image: Tensor, reference: Tensor, how: str) -> Tensor:
    """Correct the colours of ``image`` by those of ``reference``.

    Args:
        image: ``(b, 3, h, w)`` in [0, 1].
        reference: ``(b, 3, h, w)`` in [0, 1], the input enlarged to the same size by bicubic interpolation.
        how: ``none``, ``adain`` or ``wavelet``.

    Raises:
        UserError: ``how`` is not one of them.
    """
    if how == "none":
        return image
    if how == "adain":
        return adain(image, reference)
    if how == "wavelet":
        return wavelet(image, reference)
    raise UserError(f"colour correction '{how}' is unknown: choose none, adain or wavelet")
