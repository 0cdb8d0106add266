"""Which metrics a run measures: what was asked for, what of it there are weights for, and why not the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from quantsr.errors import UserError
from quantsr.flow import FlowEstimator
from quantsr.metrics.dover import Dover
from quantsr.metrics.perceptual import SMALLEST, FrechetDistance, ImageMetric, description
from quantsr.metrics.weights import URLS, missing

NO_REFERENCE = "it compares with the ground truth, and the data has none"
ARROWS = {True: "↓", False: "↑"}  # Lower is better, higher is better.


@dataclass(frozen=True)
class Metrics:
    """What is measured besides PSNR-Y and SSIM, each built once.

    Attributes:
        images: metrics of single images by name; of a clip, of each of its frames.
        fid: of all images, or all frames, as a set.
        dover: of whole clips.
        flow: estimates what moves in clips whose true flow is not known, for E*_warp.
        absent: why others that were asked for are not measured, by name.
    """

    images: dict[str, ImageMetric] = field(default_factory=dict)
    fid: FrechetDistance | None = None
    dover: Dover | None = None
    flow: FlowEstimator | None = None
    absent: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Those that are measured and those that are absent."""
        sets = [name for name in ("fid", "dover") if getattr(self, name) is not None]
        return [*self.images, *sets, *self.absent]

    def to(self, device: torch.device | str) -> "Metrics":
        """Compute on this device."""
        for metric in (*self.images.values(), self.fid):
            if metric is not None:
                metric.to(device)
        return self


def choose(
    names: Sequence[str] = (),
    require: Sequence[str] = (),
    weights_dir: str | Path | None = None,
    shape: Sequence[int] | None = None,
    count: int | None = None,
    flow: FlowEstimator | None = None,
    reference: bool = True,
) -> Metrics:
    """Build the metrics that were asked for and can be measured.

    Args:
        names: any of lpips, dists, niqe, musiq, maniqa, clipiqa, fid, dover. Clips are always asked for dover.
        require: the same; these are measured too, and it is an error if they cannot be.
        weights_dir: looked into first for weights, then torch.hub's folder.
        shape: of the first output, ``(3, h, w)`` or ``(t, 3, h, w)``; None for images of unknown size.
        count: how many images or clips are measured.
        flow: for E*_warp of clips.
        reference: whether there is ground truth.

    Raises:
        UserError: an unknown name, a required metric that cannot be measured, a weight file that is not readable.
    """
    for key, given in (("names", names), ("require", require)):
        unknown = [name for name in given if name not in URLS]
        if unknown:
            raise UserError(f"metrics.{key} knows {', '.join(URLS)}, not {', '.join(unknown)}")
    clips = shape is not None and len(shape) == 4
    asked = dict.fromkeys([*names, *require, *(["dover"] if clips else [])])
    reasons = {name: _obstacle(name, shape, count, reference) or missing(name, weights_dir) for name in asked}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    for name in require:
        if name in absent:
            raise UserError(f"metrics.require: {name} cannot be measured: {absent[name]}")
    available = [name for name in asked if name not in absent]
    return Metrics(
        images={name: ImageMetric(name, weights_dir) for name in available if name not in ("fid", "dover")},
        fid=FrechetDistance(weights_dir) if "fid" in available else None,
        dover=Dover(weights_dir) if "dover" in available else None,
        flow=flow,
        absent=absent,
    )


def _obstacle(name: str, shape: Sequence[int] | None, count: int | None, reference: bool) -> str | None:
    """Why a metric does not suit the data; None if it does."""
    clips = shape is not None and len(shape) == 4
    if not reference and needs_reference(name):
        return NO_REFERENCE
    if name == "dover" and not clips:
        return "it scores clips, and the data is of images"
    if name == "fid" and count is not None and count * (shape[0] if clips else 1) < 2:
        return "it compares sets of two images or more, and the data has one"
    if shape is not None and min(shape[-2:]) < SMALLEST.get(name, 1):
        return f"it needs images of {SMALLEST[name]} pixels a side or more, and the data has {shape[-1]} x {shape[-2]}"
    return None


def needs_reference(name: str) -> bool:
    """Whether a metric of :func:`choose` compares with the ground truth."""
    return name == "fid" or (name != "dover" and description(name)["metric_mode"] == "FR")


def lower_is_better(name: str) -> bool:
    """Whether a lower score of a metric of :func:`choose` is better."""
    return name != "dover" and bool(description(name).get("lower_better"))


def print_choice(metrics: Metrics) -> None:
    """A table of what will be measured and what is missing, for before a run; nothing if nothing was asked for."""
    if not metrics.names():
        return
    table = Table(title="metrics besides PSNR-Y and SSIM", title_justify="left")
    for heading in ("metric", "better", "available", "what is missing"):
        table.add_column(heading, overflow="fold")
    for name in metrics.names():
        better = "lower" if lower_is_better(name) else "higher"
        available = "no" if name in metrics.absent else "yes"
        table.add_row(name, better, available, metrics.absent.get(name, ""))
    Console().print(table, markup=False, highlight=False)
