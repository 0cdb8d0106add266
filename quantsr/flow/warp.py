"""What one does with a flow: warp by it, resize it, find where it cannot be trusted."""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Look up, for each pixel ``p``, the image at ``p + flow(p)``: bilinear, zero outside the image.

    Args:
        image: ``(n, c, h, w)``, any values.
        flow: ``(n, 2, h, w)``, pixels of the image's grid.

    Returns:
        ``(n, c, h, w)``, of the image's dtype. Differentiable in both.

    Raises:
        ValueError: the shapes do not belong together.
    """
    n, _, height, width = image.shape
    if flow.shape != (n, 2, height, width):
        raise ValueError(f"a flow for {tuple(image.shape)} has the shape {(n, 2, height, width)}, not {flow.shape}")
    # Half precision cannot tell neighbouring pixels apart beyond column 2048, bfloat16 beyond 256.
    dtype = torch.promote_types(image.dtype, torch.float32)
    x, y = _targets(flow.to(dtype))
    # grid_sample's coordinates, -1 and 1 are the centres of the outermost pixels.
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(image.to(dtype), grid, "bilinear", "zeros", align_corners=True).to(image.dtype)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """The same motion on a grid of another size: bilinear, the vectors grow with the grid.

    Args:
        flow: ``(n, 2, h, w)``.
        size: height and width of the result.

    Returns:
        ``(n, 2, *size)``, in pixels of the new grid.
    """
    height, width = flow.shape[-2:]
    growth = flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)
    return F.interpolate(flow * growth, size=size, mode="bilinear", align_corners=False)


def occlusion(forward: Tensor, backward: Tensor, alpha: float = 0.01, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """Where a flow and its counterpart contradict each other: the forward-backward check.

    A pixel counts as occluded where ``|f + warp(b, f)| > alpha (|f| + |b|) + beta``. This is MGLD-VSR's variant of
    UnFlow's check (arXiv 1711.07837, eq. 1): lengths instead of squared lengths, and on the right ``|b|`` at the pixel
    itself instead of at its target. Pixels whose target leaves the frame meet a zero flow there, and so count as
    occluded if they move by more than about half a pixel.

    Args:
        forward: from this frame to the next, ``(n, 2, h, w)``, pixels.
        backward: from the next frame to this one, the same.
        alpha: tolerance relative to the motion.
        beta: tolerance, pixels.

    Returns:
        Two masks ``(n, 1, h, w)``, float, 1 = occluded: pixels of this frame that the next does not show (they go
        with ``forward``), and pixels of the next frame that this one does not show (they go with ``backward``).
    """
    tolerance = alpha * (_length(forward) + _length(backward)) + beta
    forward_occluded = _length(forward + warp(backward, forward)) > tolerance
    backward_occluded = _length(backward + warp(forward, backward)) > tolerance
    return forward_occluded.to(forward.dtype), backward_occluded.to(backward.dtype)


def leaves_frame(flow: Tensor) -> Tensor:
    """Which pixels move out of the frame, beyond the centres of the outermost pixels.

    Args:
        flow: ``(n, 2, h, w)``, pixels.

    Returns:
        ``(n, 1, h, w)``, float, 1 = the target lies outside.
    """
    height, width = flow.shape[-2:]
    x, y = _targets(flow)
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    return outside.unsqueeze(1).to(flow.dtype)


def _targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, each ``(n, h, w)``, of where the pixels go."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype, device=flow.device)
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)
    return flow[:, 0] + x, flow[:, 1] + y.unsqueeze(1)


def _length(flow: Tensor) -> Tensor:
    """Lengths of the vectors, ``(n, 1, h, w)``."""
    return torch.linalg.vector_norm(flow, dim=1, keepdim=True)
