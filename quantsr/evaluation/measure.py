"""Run models over a data set and compare their outputs with the ground truth."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from quantsr.data.degradations import to_float
from quantsr.data.files import Skipped, Unusable, read_usable, warn_skipped
from quantsr.enlarging import bicubic
from quantsr.errors import UserError
from quantsr.evaluation.outputs import as_saved, save_output, save_versions
from quantsr.evaluation.report import Report, means, pictures, spread
from quantsr.flow import FlowEstimator
from quantsr.metrics.choice import NO_REFERENCE, Metrics
from quantsr.metrics.fidelity import WINDOW, check_same_shape, psnr, psnr_y, ssim_y
from quantsr.metrics.temporal import estimate_flows, occluded_pixels, warping_error

Model = Callable[[Tensor], Tensor]
SHEET_ROWS, SHEET_CLIPS = 4, 2  # images or clips that are shown


@torch.no_grad()
def measure(
    models: dict[str, Model],
    data: Dataset,
    scale: int,
    metrics: Metrics | None = None,
    images_dir: Path | None = None,
    samples_dir: Path | None = None,
) -> Report:
    """Run models over a data set and compare with the ground truth, where there is one, on 8-bit images.

    Args:
        models: by name, each from ``(1, 3, h, w)`` or ``(1, t, 3, h, w)`` on the CPU to the CPU (see
            :func:`quantsr.upscaling.on_device`); ``bicubic`` is added in front. If both ``teacher`` and ``student``
            are there, their outputs are compared too.
        data: samples ``{"lq", "gt", "name"}`` of images or clips, all without ``gt`` where there is no ground truth;
            of clips perhaps with their true ``flow``.
        scale: upscaling factor.
        metrics: what to measure besides PSNR-Y and SSIM; needed for clips, for their flow.
        images_dir: where to save the last model's output for every image (a clip: its frames and an mp4); None not to.
        samples_dir: where to save input, ground truth and every output of what the comparison sheet shows, a folder
            an image or clip; None not to.
    """
    metrics = metrics or Metrics()
    models = {"bicubic": lambda lq: bicubic(lq, scale), **models}
    report = Report(list(models), absent=dict(metrics.absent))
    shown: set[int] | None = None
    for sample in track(_samples(data), "measuring", total=len(data), console=Console(), transient=True):
        lq, name = sample["lq"], sample["name"]
        outputs = {model: as_saved(run(lq[None]))[0] for model, run in models.items()}
        versions = {**outputs, "gt": sample["gt"]} if "gt" in sample else outputs
        if shown is None:
            shown = spread(len(data), SHEET_ROWS if lq.ndim == 3 else SHEET_CLIPS)
        if lq.ndim == 3:
            frames, row = [], compare(versions, metrics)
        else:
            frames = [compare({model: clip[i] for model, clip in versions.items()}, metrics) for i in range(len(lq))]
            row = means(frames) | of_clip(versions, sample.get("flow"), metrics)
        report.frames += [{"name": name, "frame": i, **values} for i, values in enumerate(frames)]
        if len(report.rows) in shown:
            report.pictures += pictures(name, {"lq": lq, **versions}, row, frames)
            if samples_dir is not None:
                save_versions({"lq": lq, **versions}, samples_dir / name)
        report.rows.append({"name": name, **row})
        if images_dir is not None:
            save_output(outputs[list(models)[-1]], images_dir, name)
    return _finished(report, metrics)


def measure_outputs(matches: Sequence[tuple[str, Path, Path]], metrics: Metrics | None = None) -> Report:
    """Compare ready-made images with ground truth: (name, output, ground truth) of each.

    Those that cannot be read, are too small or are not of the ground truth's size are left out and named in the log.

    Raises:
        UserError: nothing is left.
    """
    metrics = metrics or Metrics()
    report = Report(["outputs"], absent=dict(metrics.absent))
    skipped: list[Skipped] = []
    for name, *paths in track(matches, "measuring", console=Console(), transient=True):
        try:
            sr, gt = (to_float(read_usable(path, WINDOW)) for path in paths)
            check_same_shape(sr, gt)
        except (Unusable, UserError) as reason:
            skipped.append((name, str(reason)))
        else:
            report.rows.append({"name": name, **compare({"outputs": sr, "gt": gt}, metrics)})
    warn_skipped(skipped)
    if not report.rows:
        name, reason = skipped[0]
        raise UserError(f"none of the {len(matches)} outputs can be measured: {name}: {reason}")
    return _finished(report, metrics)


def compare(versions: dict[str, Tensor], metrics: Metrics) -> dict[str, float]:
    """Every model's output ``(3, h, w)`` with the ground truth ``gt``, if any, and the student's with the teacher's.

    Metrics that need a larger image are left out.
    """
    outputs, gt = {model: image for model, image in versions.items() if model != "gt"}, versions.get("gt")
    row: dict[str, float] = {}
    for model, sr in outputs.items() if gt is not None else ():
        row[f"{model}.psnr_y"] = psnr_y(sr[None], gt[None]).item()
        row[f"{model}.ssim"] = ssim_y(sr[None], gt[None]).item()
    if {"teacher", "student"} <= outputs.keys():
        row["fidelity_psnr"] = psnr(outputs["student"][None], outputs["teacher"][None]).item()
    for name, metric in metrics.images.items():
        scored = outputs if metric.needs_reference else versions
        large = {model: image for model, image in scored.items() if min(image.shape[-2:]) >= metric.smallest}
        row |= {f"{model}.{name}": metric(image, gt) for model, image in large.items()}
    if metrics.fid is not None:
        for model, image in versions.items():
            metrics.fid.add(model, image)
    return row


def of_clip(versions: dict[str, Tensor], true_flow: Tensor | None, metrics: Metrics) -> dict[str, float]:
    """What is measured of whole clips ``(t, 3, h, w)``; E*_warp, which one frame does not have, of two or more."""
    row: dict[str, float] = {}
    for model, clip in versions.items():
        if len(clip) > 1:
            row[f"{model}.warping"] = warping(clip, true_flow, metrics.flow)
        if metrics.dover is not None:
            row[f"{model}.dover"] = metrics.dover(clip)
    return row


def warping(clip: Tensor, true_flow: Tensor | None, estimator: FlowEstimator | None) -> float:
    """E*_warp of a clip ``(t, 3, h, w)``, by its true flow where that is known."""
    if true_flow is None:
        forward, backward = estimate_flows(clip, estimator)
    else:
        forward, backward = true_flow, None
    return warping_error(clip, forward, occluded_pixels(forward, backward)).item()


def _finished(report: Report, metrics: Metrics) -> Report:
    """The report with what is of all samples together."""
    if metrics.fid is not None:
        report.sets = {model: {"fid": distance} for model, distance in metrics.fid.compute().items()}
    if not any(f"{model}.psnr_y" in row for row in report.rows for model in report.models):
        report.absent |= dict.fromkeys(("psnr_y", "ssim"), NO_REFERENCE)
    single = sum(f"{report.models[0]}.warping" not in row for row in report.rows) if report.frames else 0
    if single:
        of = "the clips have" if single == len(report.rows) else f"{single} of {len(report.rows)} clips have"
        report.absent["warping"] = f"E*_warp needs two frames, and {of} one"
    for name, metric in metrics.images.items():  # Only the size of the first sample is known before a run.
        if small := sum(f"{report.models[0]}.{name}" not in row for row in report.rows):
            needs, of = f"it needs images of {metric.smallest} pixels a side or more", f"{small} of {len(report.rows)}"
            report.absent[name] = f"{needs}, and {of} {'clips' if report.frames else 'images'} have less"
    return report


def _samples(data: Dataset) -> Iterator[dict[str, Any]]:
    return (data[index] for index in range(len(data)))
