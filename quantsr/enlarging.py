"""Enlarging by bicubic interpolation: what one-step teachers start from, and what every result is compared with.

Libraries disagree on the kernel: PyTorch's has a = -0.75, Pillow's a = -0.5, which puts enlarged photographs
43 to 48 dB apart.
"""

import torch.nn.functional as F
from torch import Tensor

KERNELS = ("torch", "pillow")


def bicubic(x: Tensor, scale: int, kernel: str = "torch") -> Tensor:
    """Bicubic enlargement of images ``(b, 3, h, w)`` or clips ``(b, t, 3, h, w)``, in [0, 1].

    Args:
        x: what to enlarge.
        scale: how many times, along each side.
        kernel: ``torch``, or ``pillow`` for what ``Image.resize`` makes of 8-bit pixels: the width first, then the
            height, each rounded to 8 bits.
    """
    up = _pillow(x.flatten(0, -4), scale) if kernel == "pillow" else _torch(x.flatten(0, -4), scale)
    return up.unflatten(0, x.shape[:-3])


def _torch(x: Tensor, scale: int) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False).clamp_(0, 1)


def _pillow(x: Tensor, scale: int) -> Tensor:
    up = x * 255  # Sums of whole levels are exact, and halves are rounded up as Pillow does.
    for size in ((1, scale), (scale, 1)):
        # PyTorch has the kernel of a = -0.5 where it avoids aliasing, of which there is none in enlarging.
        up = F.interpolate(up, scale_factor=size, mode="bicubic", align_corners=False, antialias=True)
        up = up.add_(0.5).floor_().clamp_(0, 255)
    return up.div_(255)
