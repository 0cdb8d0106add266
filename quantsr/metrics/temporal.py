"""E*_warp: how much a clip flickers, as the difference of neighbouring frames after warping one to the other.

The flow warping error of Lai et al. (arXiv 1808.00449), as QuantVSR measures it: the flow is estimated on the measured
clip itself, in both directions; errors are averaged over pixels outside occlusions, then over pairs of frames, then
over clips, and given in thousandths. Our choices where QuantVSR's script differs:

- Frames are measured at full size. The script first halves them, which hides flicker of single pixels.
- The squared error is the mean over the three channels, as in Lai et al.'s code; the script sums over them, so its
  figures are three times as large.
- Pixels that leave the frame do not count. The script compares some of them with the pixels at the border.
- Where the true flow of a clip is known, it can take the place of the estimate.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from quantsr.errors import UserError
from quantsr.flow import FlowEstimator, flow_estimator, leaves_frame, warp


def warping_error(frames: Tensor, forward_flow: Tensor, occluded: Tensor) -> Tensor:
    """E*_warp of one clip.

    Args:
        frames: RGB in [0, 1], ``(t, 3, h, w)``.
        forward_flow: from each frame to the next, pixels, ``(t-1, 2, h, w)``.
        occluded: 1 where a pixel of a frame does not count, ``(t-1, 1, h, w)``.

    Returns:
        The mean over pairs of frames of the mean squared error outside occlusions, times 1000: a float64 scalar. A
        pair of which nothing is left counts as 0, as in QuantVSR's script.

    Raises:
        UserError: fewer than two frames, or the shapes do not belong together.
    """
    _check_shapes(frames, forward_flow)
    pairs, _, height, width = forward_flow.shape
    if occluded.shape != (pairs, 1, height, width):
        raise UserError(f"occlusions of a clip {tuple(frames.shape)} cannot have the shape {tuple(occluded.shape)}")
    counts = 1 - occluded.double()
    frames = frames.double()
    error = (warp(frames[1:], forward_flow) - frames[:-1]).square().mean(dim=1, keepdim=True)
    per_pair = (error * counts).sum(dim=(1, 2, 3)) / counts.sum(dim=(1, 2, 3)).clamp(min=1)
    return 1000 * per_pair.mean()


def occluded_pixels(forward: Tensor, backward: Tensor | None = None) -> Tensor:
    """The pixels of a frame that E*_warp leaves out.

    Those whose target lies outside the next frame, and with a backward flow also those that Ruder et al. (arXiv
    1604.08610) leave out: where the flows contradict each other, and at boundaries of the motion.

    Args:
        forward: from each frame to the next, ``(n, 2, h, w)``, pixels.
        backward: from the next frame back, the same.

    Returns:
        ``(n, 1, h, w)``, float, 1 = left out.
    """
    outside = leaves_frame(forward)
    if backward is None:
        return outside
    there_and_back = warp(backward, forward)
    motion = _squared(forward)
    contradicted = _squared(forward + there_and_back) > 0.01 * (motion + _squared(there_and_back)) + 0.5
    change = torch.zeros_like(motion)
    change[..., :, :-1] += _squared(forward.diff(dim=-1))
    change[..., :-1, :] += _squared(forward.diff(dim=-2))
    boundary = change > 0.01 * motion + 0.002
    return (contradicted | boundary).to(forward.dtype).maximum(outside)


def estimate_flows(frames: Tensor, estimator: FlowEstimator) -> tuple[Tensor, Tensor]:
    """Forward and backward flow of a clip ``(t, 3, h, w)``, each ``(t-1, 2, h, w)``; a pair of frames at a time."""
    pairs = list(zip(frames[:-1].split(1), frames[1:].split(1), strict=True))
    forward = torch.cat([estimator(earlier, later) for earlier, later in pairs])
    backward = torch.cat([estimator(later, earlier) for earlier, later in pairs])
    return forward, backward


class WarpingError(Metric):
    """Mean :func:`warping_error` over clips, whatever the batches and processes they came in.

    Args:
        estimator: which flow to estimate where none is given, see :func:`quantsr.flow.flow_estimator`. None: a flow
            comes with every clip.
        weights: of the estimator.

    Raises:
        UserError: see :func:`quantsr.flow.flow_estimator`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, estimator: str | None = None, weights: str | Path | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.estimator = flow_estimator(estimator, weights) if estimator is not None else None
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, clips: Tensor, forward_flow: Tensor | None = None, backward_flow: Tensor | None = None) -> None:
        """Add a batch of clips.

        Args:
            clips: RGB in [0, 1], ``(b, t, 3, h, w)``.
            forward_flow: the true flow from each frame to the next, ``(b, t-1, 2, h, w)``, pixels; estimated if None.
            backward_flow: the true flow from the next frame back, the same. Without it, a true forward flow is
                trusted wherever it stays in the frame.

        Raises:
            UserError: fewer than two frames, wrong shapes, or neither a flow nor an estimator.
        """
        for i, frames in enumerate(clips):
            if forward_flow is not None:
                forward, backward = forward_flow[i], None if backward_flow is None else backward_flow[i]
            else:
                forward, backward = self._estimate(frames)
            _check_shapes(frames, forward)
            self.total += warping_error(frames, forward, occluded_pixels(forward, backward))
            self.count += 1

    def compute(self) -> Tensor:
        """The mean so far, a float64 scalar; NaN before the first clip."""
        return self.total / self.count

    def _estimate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        if self.estimator is None:
            raise UserError("E*_warp needs the true flow of the clips or an optical flow estimator: name one, e.g. dis")
        _check_frames(frames)
        return estimate_flows(frames, self.estimator)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[0] < 2 or frames.shape[1] != 3:
        raise UserError(f"E*_warp needs clips (t, 3, h, w) of two frames or more, got {tuple(frames.shape)}")


def _check_shapes(frames: Tensor, forward_flow: Tensor) -> None:
    _check_frames(frames)
    t, _, height, width = frames.shape
    if forward_flow.shape != (t - 1, 2, height, width):
        raise UserError(f"the flow of a clip {tuple(frames.shape)} cannot have the shape {tuple(forward_flow.shape)}")


def _squared(vectors: Tensor) -> Tensor:
    """Squared lengths, ``(n, 1, h, w)``."""
    return vectors.square().sum(dim=1, keepdim=True)
