"""Optical flow between the frames of a clip.

A flow ``(n, 2, h, w)`` holds x (to the right) and y (down), in pixels of its own grid. The forward flow goes from a
frame to the next one: what is at ``p`` in this frame is at ``p + forward(p)`` in the next, so that
``warp(next_frame, forward)`` looks like this frame. The backward flow goes from the next frame to this one.
"""

from quantsr.flow.estimate import ESTIMATORS, FlowEstimator, flow_estimator
from quantsr.flow.warp import leaves_frame, occlusion, resize_flow, warp

__all__ = ["ESTIMATORS", "FlowEstimator", "flow_estimator", "leaves_frame", "occlusion", "resize_flow", "warp"]
