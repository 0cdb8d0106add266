"""What a pipeline is called with in memory: checked, made a tensor, and the result made the same kind again.

PIL image            any mode that Pillow makes RGB, but for I and F (32 bits); grayscale becomes RGB, transparency is
                     dropped, 16-bit gray is reduced to 8 bits
NumPy array          ``(h, w, 3)``, or ``(h, w)``, ``(h, w, 1)`` (gray) or ``(h, w, 4)`` (transparency is dropped)
tensor               ``(3, h, w)``, ``(b, 3, h, w)`` or a clip ``(b, t, 3, h, w)``

Arrays are uint8 or float in [0, 1], tensors float in [0, 1]. Results are RGB.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.degradations import to_float
from quantsr.data.files import DAMAGE, rgb_pixels
from quantsr.errors import UserError
from quantsr.evaluation.outputs import as_saved

TOLERANCE = 1e-3
"""How far values may be beyond [0, 1], as resizing and rounding leave them; they are cut."""
KINDS = "a path, a PIL image, a NumPy array (h, w, 3), or a tensor (3, h, w), (b, 3, h, w) or (b, t, 3, h, w)"


class Given(NamedTuple):
    """An input as models take it.

    Attributes:
        pixels: ``(b, 3, h, w)`` or ``(b, t, 3, h, w)`` float32 in [0, 1].
        back: from a result of that kind to what was given.
    """

    pixels: Tensor
    back: Callable[[Tensor], Any]


def read_input(x: Any) -> Given:
    """Check an input and make it a tensor.

    Raises:
        UserError: it is of another kind, type, shape or range, in one sentence.
    """
    if isinstance(x, Image.Image):
        return _from_pil(x)
    if isinstance(x, np.ndarray):
        return _from_array(x)
    if isinstance(x, Tensor):
        return _from_tensor(x)
    raise UserError(f"the pipeline takes {KINDS}, not {type(x).__name__}")


def _from_pil(image: Image.Image) -> Given:
    try:
        pixels = to_float(rgb_pixels(image))[None]
    except DAMAGE as error:  # A file is read only now.
        raise UserError(f"the PIL image cannot be made RGB: {error}") from error
    return Given(_sized(pixels), lambda sr: to_pil_image(as_saved(sr[0])))


def _from_array(array: np.ndarray) -> Given:
    gray = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if not gray and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise UserError(f"an array is one image (h, w, 3), not of shape {array.shape}: give several as a tensor")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"an array is uint8 or float in [0, 1], not {array.dtype}")
    channels = np.repeat(array.reshape(*array.shape[:2], 1), 3, 2) if gray else array[..., :3]
    # A copy: torch takes neither negative strides nor arrays that are read-only, nor every type of float.
    channels = channels.astype(np.uint8 if array.dtype == np.uint8 else np.float32)
    pixels = rearrange(torch.from_numpy(channels), "h w c -> 1 c h w")

    def back(sr: Tensor) -> np.ndarray:
        result = rearrange(sr[0].cpu(), "c h w -> h w c")
        if array.dtype == np.uint8:
            return (as_saved(result) * 255).round().to(torch.uint8).numpy()
        return result.numpy().astype(array.dtype)

    return Given(_sized(to_float(pixels) if array.dtype == np.uint8 else _ranged(pixels)), back)


def _from_tensor(x: Tensor) -> Given:
    if not 3 <= x.ndim <= 5 or x.shape[-3] != 3:
        raise UserError(
            f"a tensor is (3, h, w), (b, 3, h, w) or a clip (b, t, 3, h, w) of RGB, not of shape {tuple(x.shape)}"
        )
    if x.is_meta:
        raise UserError("a tensor on the device meta has no values")
    if not x.is_floating_point():
        raise UserError(f"a tensor is float in [0, 1], not {x.dtype}: divide 8-bit values by 255")
    pixels = _sized(_ranged(x if x.ndim > 3 else x[None]))

    def back(sr: Tensor) -> Tensor:
        return (sr if x.ndim > 3 else sr[0]).to(x.device, x.dtype)

    return Given(pixels, back)


def _sized(pixels: Tensor) -> Tensor:
    if not pixels.numel():
        raise UserError(f"an input needs at least one pixel, not the shape {tuple(pixels.shape)}")
    return pixels


def _ranged(pixels: Tensor) -> Tensor:
    """Float32, cut to [0, 1] where values are hardly beyond."""
    pixels = pixels.detach().float()
    if pixels.numel():
        lower, upper = (value.item() for value in pixels.aminmax())
        if not (lower >= -TOLERANCE and upper <= 1 + TOLERANCE):  # Written so that nan is refused, too.
            raise UserError(f"float values are in [0, 1], not from {lower:g} to {upper:g}")
        if lower < 0 or upper > 1:
            pixels = pixels.clamp(0, 1)
    return pixels
