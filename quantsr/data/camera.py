"""Clips made from one photograph by a camera that moves over it, with the motion known exactly.

A camera path is a tensor (t, 2, 3) of affine maps: frame i shows at pixel p, counted from the centre of the
frame, what the photograph has at `path[i] @ (x, y, 1)`, in pixels counted from its top left pixel. The paths
are our choice: mild like those of a handheld camera, some faster.
"""

import math

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

PAN = (0.5, 8.0)
"""Slowest and fastest peak speed of the view, in frame pixels per frame; its logarithm is drawn evenly."""
ROTATION = math.radians(0.4)
"""Fastest peak speed of rotation, in radians per frame."""
ZOOM = 0.006
"""Fastest peak speed of the logarithm of the zoom, per frame."""
SAMPLING = (0.85, 1.1)
"""Photograph pixels per frame pixel, before zooming: about 1, so that nothing aliases and little is blurred."""
TILT = math.radians(4)
"""Largest angle about which the view rotates to and fro."""
SLOW, SHAKE = (20, 60), (6, 15)
"""Shortest and longest period of the intended motion and of the hand's shake, in frames."""
SHAKE_SPEED = 0.3
"""Peak speed of the shake as a part of that of the intended motion."""
MARGIN = 2
"""Photograph pixels at the border that only interpolation may touch."""
LARGEST_VIEW = 0.9
"""Largest part of a side of the photograph that the view may take: the rest leaves room to move."""


def camera_path(photo: tuple[int, int], view: tuple[int, int], frames: int, rng: np.random.Generator) -> Tensor:
    """Draw a smooth path of pan, zoom and rotation that never looks outside the photograph.

    A photograph that is hardly larger than the view is enlarged and panned over less.

    Args:
        photo: (height, width) of the photograph.
        view: (height, width) of the frames.
        frames: length of the clip.
        rng: the only source of chance.

    Returns:
        (frames, 2, 3) float64 affine maps, see the head of this file.
    """
    speed = math.exp(rng.uniform(*np.log(PAN)))
    direction = rng.uniform(0, 2 * math.pi)
    x, y = (_wander(frames, speed * axis, rng) for axis in (math.cos(direction), math.sin(direction)))
    angle = rng.uniform(-TILT, TILT) + _wander(frames, rng.uniform(-ROTATION, ROTATION), rng)
    sampling = rng.uniform(*SAMPLING) * torch.exp(_wander(frames, rng.uniform(-ZOOM, ZOOM), rng))
    linear = rearrange([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], "(i j) t -> t i j", i=2)
    linear = linear * sampling[:, None, None]

    spare = torch.tensor([photo[1], photo[0]], dtype=torch.float64) - 1 - 2 * MARGIN
    reach = _reach(linear, view)
    linear = linear * (LARGEST_VIEW * spare / (2 * reach)).min().clamp(max=1)
    room = spare - 2 * _reach(linear, view)

    pan = torch.stack([x, y], -1)
    pan = pan - pan.amin(0)
    extent = pan.amax(0)
    pan = pan * (room / extent.clamp(min=1e-9)).min().clamp(max=1)
    start = MARGIN + _reach(linear, view) + torch.from_numpy(rng.uniform(size=2)) * (room - pan.amax(0))
    return torch.cat([linear, (start + pan)[..., None]], -1)


def render(photo: Tensor, path: Tensor, size: tuple[int, int]) -> Tensor:
    """What the camera sees, by bicubic interpolation.

    Args:
        photo: (3, H, W) float in [0, 1].
        path: (t, 2, 3) of `camera_path`.
        size: (height, width) of the frames.

    Returns:
        (t, 3, height, width) float32 in [0, 1].
    """
    points = einsum(path, _pixels(size), "t i j, j h w -> t h w i")
    longest = torch.tensor([photo.shape[-1], photo.shape[-2]], dtype=torch.float64) - 1
    grid = (2 * points / longest - 1).float()
    photos = photo.float().expand(len(path), -1, -1, -1)
    frames = F.grid_sample(photos, grid, mode="bicubic", padding_mode="border", align_corners=True)
    # Bicubic interpolation overshoots at edges.
    return frames.clamp(0, 1)


def true_flow(path: Tensor, size: tuple[int, int]) -> Tensor:
    """Where every pixel of a frame is in the next one: the forward optical flow.

    Args:
        path: (t, 2, 3) of `camera_path`.
        size: (height, width) of the frames.

    Returns:
        (t - 1, 2, height, width) float32, x and y displacement in pixels; what leaves the frame points
        outside.
    """
    here, there = path[:-1], path[1:]
    inverse = torch.linalg.inv(there[..., :2])
    # A point of the photograph seen at p now: here @ p = there @ (p + flow).
    moved = inverse @ torch.cat([here[..., :2], here[..., 2:] - there[..., 2:]], -1)
    pixels = _pixels(size)
    return (einsum(moved, pixels, "t i j, j h w -> t i h w") - pixels[:2]).float()


def _wander(frames: int, speed: float, rng: np.random.Generator) -> Tensor:
    """A slow wave with this peak speed and a shaking one on top, (frames,) float64."""
    time = torch.arange(frames, dtype=torch.float64)
    total = torch.zeros_like(time)
    for periods, part in ((SLOW, 1.0), (SHAKE, SHAKE_SPEED)):
        frequency, phase = 2 * math.pi / rng.uniform(*periods), rng.uniform(0, 2 * math.pi)
        total += part * speed / frequency * torch.sin(frequency * time + phase)
    return total


def _pixels(size: tuple[int, int]) -> Tensor:
    """(3, height, width) homogeneous coordinates x, y, 1 of all pixels, counted from the centre of the frame."""
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


def _reach(linear: Tensor, view: tuple[int, int]) -> Tensor:
    """(2,): how far the view's corners get from its centre along x and y, in photograph pixels, at most."""
    corner = torch.tensor([view[1] - 1, view[0] - 1], dtype=torch.float64) / 2
    return (linear.abs() @ corner).amax(0)
