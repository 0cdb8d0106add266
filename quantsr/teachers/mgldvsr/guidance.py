"""MGLD-VSR's motion guidance (arXiv 2312.00853, section 3.2): latents of neighbouring frames are pulled together.

The flow is estimated on the low-quality clip. After each sampling step the latents take a step down the gradient of a
warped L1 loss between neighbouring frames, outside occlusions.

The authors name a flow after the propagation that it serves: their `flow_backward_prop` is the forward flow here (from
a frame to the next), their `flow_forward_prop` the backward flow. Their occlusion masks are named as here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from quantsr.flow import FlowEstimator, occlusion, resize_flow, warp


@dataclass
class Motion:
    """How the frames of clips move, on the grid of their latents.

    Attributes:
        forward: ``(b, t-1, 2, h, w)``; entry i lies on frame i and points to frame i+1, in latent pixels.
        backward: the same; entry i lies on frame i+1 and points to frame i.
        forward_occluded: ``(b, t-1, 1, h, w)``; entry i is 1 where frame i shows what frame i+1 does not.
        backward_occluded: the same; entry i is 1 where frame i+1 shows what frame i does not.
    """

    forward: Tensor
    backward: Tensor
    forward_occluded: Tensor
    backward_occluded: Tensor


@torch.no_grad()
def motion(lq_upscaled: Tensor, latent_size: tuple[int, int], estimator: FlowEstimator) -> Motion:
    """Estimate the motion of clips, as the authors do: on a quarter of the size, then resized to the latents' grid and
    checked for occlusion there.

    Args:
        lq_upscaled: the low-quality clips at the size of the output, ``(b, t, 3, h, w)``, RGB in [0, 1].
        latent_size: height and width of the latents.
        estimator: see :func:`quantsr.flow.flow_estimator`.
    """
    b, t, _, height, width = lq_upscaled.shape
    frames = rearrange(lq_upscaled.float(), "b t c h w -> (b t) c h w")
    small = F.interpolate(frames, size=(height // 4, width // 4), mode="bicubic", align_corners=False)
    small = small.unflatten(0, (b, t))
    earlier, later = small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1)
    forward = resize_flow(estimator(earlier, later), latent_size)
    backward = resize_flow(estimator(later, earlier), latent_size)
    parts = (forward, backward, *occlusion(forward, backward))
    return Motion(*(part.unflatten(0, (b, t - 1)) for part in parts))


def flow_loss(latents: Tensor, motion: Motion) -> Tensor:
    """The warped L1 loss between neighbouring frames in both directions, as released.

    In each direction, the sum over pairs of frames of the mean of ``|(1 - occluded) (frame - expected)|``. One would
    expect frame i to be compared with frame i+1 warped by the forward flow of frame i. The released code warps frame
    i+1 by the forward flow of frame i+1 (which goes to i+2), and compares frame t-2, whose neighbour has no such flow,
    with zero; the backward direction is its mirror image. Where the motion is steady, only that last pair differs. This
    follows the code, which the published results were made with.

    Args:
        latents: ``(b, t, c, h, w)``.
        motion: of the same clips.

    Returns:
        A scalar, the mean over clips.

    Raises:
        ValueError: latents and motion are of different clips.
    """
    b, t, _, height, width = latents.shape
    if motion.forward.shape != (b, t - 1, 2, height, width):
        raise ValueError(f"no motion {tuple(motion.forward.shape)} for latents {tuple(latents.shape)}")
    nothing = torch.zeros_like(latents[:, :1])
    inner = latents[:, 1:-1]  # The only frames that are warped; with t = 2 there are none.
    from_next = torch.cat([_warp_clips(inner, motion.forward[:, 1:]), nothing], dim=1)
    from_previous = torch.cat([nothing, _warp_clips(inner, motion.backward[:, :-1])], dim=1)
    errors = (1 - motion.forward_occluded) * (latents[:, :-1] - from_next)
    mirrored = (1 - motion.backward_occluded) * (latents[:, 1:] - from_previous)
    return (errors.abs() + mirrored.abs()).mean(dim=(0, 2, 3, 4)).sum()


def guide(latents: Tensor, motion: Motion, weight: float, log_variance: Tensor | float) -> Tensor:
    """Move the latents along the gradient of :func:`flow_loss`: by ``- weight * log_variance * gradient``.

    The log-variance of a sampling step is negative, so that a negative weight lowers the loss; the authors take -10.
    How far a clip moves does not depend on the other clips of the batch (our choice; the authors sample one clip).

    Args:
        latents: ``(b, t, c, h, w)``.
        motion: of the same clips.
        weight: of the guidance.
        log_variance: of the sampling step, of any shape that broadcasts to the latents'.

    Returns:
        The moved latents, detached. Works under ``no_grad`` and ``inference_mode``.
    """
    # The gradient is divided by the number of values, which half precision would round to zero.
    dtype = torch.promote_types(latents.dtype, torch.float32)
    with torch.inference_mode(False), torch.enable_grad():
        variable = latents.detach().clone().to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(len(latents) * flow_loss(variable, motion), variable)
    return (latents.detach() - weight * log_variance * gradient).to(latents.dtype)


def _warp_clips(frames: Tensor, flow: Tensor) -> Tensor:
    """:func:`quantsr.flow.warp` for frames ``(b, t, c, h, w)`` and flows ``(b, t, 2, h, w)``."""
    return warp(frames.flatten(0, 1), flow.flatten(0, 1)).unflatten(0, frames.shape[:2])
