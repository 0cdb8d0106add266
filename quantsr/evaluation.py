"""Measure models on a data set: the same numbers at the end of a run and in ``eval.py``."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from quantsr.callbacks.comparison import comparison_sheet
from quantsr.data.degradations import to_float
from quantsr.data.files import read_image
from quantsr.data.video import write_video
from quantsr.flow import FlowEstimator
from quantsr.metrics.dover import Dover
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y
from quantsr.metrics.temporal import estimate_flows, occluded_pixels, warping_error
from quantsr.streaming import stream
from quantsr.teachers.base import Teacher

Model = Callable[[Tensor], Tensor]
Picture = tuple[str, dict[str, Tensor], dict[str, str]]
SHEET_ROWS, SHEET_CLIPS, FRAMES_SHOWN = 4, 2, 3
OVERLAP = 1  # Frames that neighbouring segments of a clip share.
FRAMES_PER_SECOND = 24  # Of written clips: data sets of frames do not say.


def as_saved(image: Tensor) -> Tensor:
    """The image as an 8-bit file would hold it, in [0, 1]: what the papers measure."""
    return (image.clamp(0, 1) * 255).round() / 255


def bicubic(lq: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling of images ``(b, 3, h, w)`` or clips ``(b, t, 3, h, w)`` in [0, 1]."""
    up = F.interpolate(lq.flatten(0, -4), scale_factor=scale, mode="bicubic", align_corners=False)
    return up.clamp(0, 1).unflatten(0, lq.shape[:-3])


@dataclass
class Report:
    """What was measured.

    Attributes:
        models: what was compared with the ground truth.
        rows: one dict an image or clip: ``name``, then of every model ``<model>.psnr_y`` and ``<model>.ssim`` (Y
            channel against ground truth; means over the frames of a clip), of clips also ``<model>.warping``
            (E*_warp) and perhaps ``<model>.dover``, those of ``gt`` too, and where there is a student
            ``fidelity_psnr`` (RGB, against the teacher, dB).
        frames: one dict a frame of every clip: ``name``, ``frame``, and the same without what is of whole clips.
        pictures: for a comparison sheet, (name, versions by caption, notes by caption) of some images, or of the
            first, middle and last frame of some clips.
    """

    models: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means over the images or clips, as in ``metrics.json``."""
        result: dict[str, Any] = {}
        for key in self.rows[0]:
            if key != "name":
                model, _, metric = key.rpartition(".")
                owner = result.setdefault(model, {}) if model else result
                owner[metric] = sum(row[key] for row in self.rows) / len(self.rows)
        return result | {"images" if not self.frames else "clips": len(self.rows)}

    def sheet(self) -> Image.Image:
        """Comparison image of the pictures: a row each, PSNR-Y under every version."""
        names, versions, notes = zip(*self.pictures, strict=True)
        return comparison_sheet(versions, names, notes)

    def write_csv(self, folder: Path) -> Path:
        """``images.csv`` with a line an image, or ``clips.csv`` with a line a clip and ``frames.csv`` with one a frame;
        returns the first."""
        path = folder / ("images.csv" if not self.frames else "clips.csv")
        _write_rows(path, self.rows)
        if self.frames:
            _write_rows(folder / "frames.csv", self.frames)
        return path


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@torch.no_grad()
def measure(
    models: dict[str, Model],
    data: Dataset,
    scale: int,
    images_dir: Path | None = None,
    flow: FlowEstimator | None = None,
    dover: Dover | None = None,
) -> Report:
    """Run models over a data set and compare with the ground truth, on 8-bit images.

    Args:
        models: by name, each from ``(1, 3, h, w)`` or ``(1, t, 3, h, w)`` on the CPU to the CPU (see
            :func:`on_device`); ``bicubic`` is added in front. If both ``teacher`` and ``student`` are there, their
            outputs are compared too.
        data: samples ``{"lq", "gt", "name"}`` of images or clips; of clips perhaps with their true ``flow``.
        scale: upscaling factor.
        images_dir: where to save the last model's output for every image (a clip: its frames and an mp4); None not to.
        flow: estimates what moves in clips whose true flow is not known, for E*_warp.
        dover: scores the clips, where its weights are at hand.
    """
    models = {"bicubic": lambda lq: bicubic(lq, scale), **models}
    report = Report(list(models))
    shown: set[int] | None = None
    for sample in track(_samples(data), "measuring", total=len(data), console=Console(), transient=True):
        lq, name = sample["lq"], sample["name"]
        outputs = {model: as_saved(run(lq[None]))[0] for model, run in models.items()}
        versions = {**outputs, "gt": sample["gt"]}
        row = compare(outputs, sample["gt"])
        if shown is None:
            shown = _spread(len(data), SHEET_ROWS if lq.ndim == 3 else SHEET_CLIPS)
        if lq.ndim == 4:
            row |= {f"{model}.warping": warping(clip, sample.get("flow"), flow) for model, clip in versions.items()}
            row |= {f"{model}.dover": dover(clip) for model, clip in versions.items() if dover is not None}
            each = (compare({m: sr[i] for m, sr in outputs.items()}, sample["gt"][i]) for i in range(len(lq)))
            report.frames += [{"name": name, "frame": i, **values} for i, values in enumerate(each)]
        if len(report.rows) in shown:
            report.pictures += pictures(name, {"lq": lq, **versions}, row, report.frames[-len(lq) :])
        report.rows.append({"name": name, **row})
        if images_dir is not None:
            save_output(outputs[list(models)[-1]], images_dir, name)
    return report


def compare(outputs: dict[str, Tensor], gt: Tensor) -> dict[str, float]:
    """Every model's output, an image ``(3, h, w)`` or clip ``(t, 3, h, w)``, with the ground truth; and the student's
    with the teacher's."""
    row: dict[str, float] = {}
    for model, sr in outputs.items():
        row |= against_truth(model, sr, gt)
    if {"teacher", "student"} <= outputs.keys():
        row["fidelity_psnr"] = psnr(_frames(outputs["student"]), _frames(outputs["teacher"])).mean().item()
    return row


def against_truth(model: str, sr: Tensor, gt: Tensor) -> dict[str, float]:
    """PSNR-Y and SSIM of one image or clip (the mean over its frames), under the model's name."""
    sr, gt = _frames(sr), _frames(gt)
    return {f"{model}.psnr_y": psnr_y(sr, gt).mean().item(), f"{model}.ssim": ssim_y(sr, gt).mean().item()}


def warping(clip: Tensor, true_flow: Tensor | None, estimator: FlowEstimator | None) -> float:
    """E*_warp of a clip ``(t, 3, h, w)``, by its true flow where that is known."""
    if true_flow is None:
        forward, backward = estimate_flows(clip, estimator)
    else:
        forward, backward = true_flow, None
    return warping_error(clip, forward, occluded_pixels(forward, backward)).item()


def save_output(output: Tensor, folder: Path, name: str) -> None:
    """An image as ``name.png``; a clip as the frames ``name/00000.png`` and on, and as ``name.mp4``."""
    frames = _frames(output)
    paths = (
        [folder / f"{name}.png"] if output.ndim == 3 else [folder / name / f"{i:05d}.png" for i in range(len(frames))]
    )
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, frame in zip(paths, frames, strict=True):
        to_pil_image(frame).save(path)
    if output.ndim == 4:
        write_video(folder / f"{name}.mp4", frames, FRAMES_PER_SECOND)


def _frames(picture: Tensor) -> Tensor:
    """An image or clip as a batch of frames."""
    return picture if picture.ndim == 4 else picture[None]


def pictures(
    name: str, versions: dict[str, Tensor], row: dict[str, float], frames: Sequence[dict[str, Any]]
) -> list[Picture]:
    """What a comparison sheet shows of an image (all of it) or of a clip (three frames), with its figures."""
    if versions["lq"].ndim == 3:
        return [(name, versions, _notes(versions, row))]
    chosen = sorted(_spread(len(versions["lq"]), FRAMES_SHOWN))
    each = [{model: clip[i] for model, clip in versions.items()} for i in chosen]
    return [(f"{name}, frame {i}", v, _notes(v, frames[i])) for i, v in zip(chosen, each, strict=True)]


def _notes(versions: dict[str, Tensor], values: dict[str, Any]) -> dict[str, str]:
    return {m: f"{values[f'{m}.psnr_y']:.2f} dB" for m in versions if f"{m}.psnr_y" in values}


def _spread(length: int, count: int) -> set[int]:
    """``count`` numbers below ``length``, evenly spread from the first to the last."""
    return set(torch.linspace(0, length - 1, min(count, length)).round().int().tolist())


def on_device(model: Teacher, device: torch.device | str) -> Model:
    """A model as a function between images or clips on the CPU, computed on ``device``.

    Clips go through in segments that share :data:`OVERLAP` frames; an image model takes them frame by frame.
    """
    model.to(device)

    def run(lq: Tensor) -> Tensor:
        if lq.ndim == 4:
            return model(lq.to(device)).float().cpu()
        return torch.stack([torch.stack(list(stream_frames(model, clip, device))) for clip in lq])

    return run


def stream_frames(model: Teacher, frames: Iterable[Tensor], device: torch.device | str) -> Iterator[Tensor]:
    """The frames ``(3, h, w)`` of a clip through a model on ``device``, one after the other."""
    model.to(device)

    def restore(segment: Tensor) -> Tensor:
        if model.frames == 1:
            return model(segment[:, 0].to(device))[:, None].float().cpu()
        return model(segment.to(device)).float().cpu()

    return stream(restore, frames, model.frames, OVERLAP if model.frames > 1 else 0)


def measure_outputs(matches: Sequence[tuple[str, Path, Path]]) -> Report:
    """Compare ready-made images with ground truth: (name, output, ground truth) of each."""
    report = Report(["outputs"])
    for name, *paths in track(matches, "measuring", console=Console(), transient=True):
        sr, gt = (to_float(read_image(path)) for path in paths)
        report.rows.append({"name": name, **against_truth("outputs", sr, gt)})
    return report


def _samples(data: Dataset) -> Iterator[dict[str, Any]]:
    return (data[index] for index in range(len(data)))


COLUMNS = {
    "psnr_y": ("PSNR-Y (dB)", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "warping": ("E*_warp (1e-3)", ".3f"),
    "dover": ("DOVER", ".4f"),
}


def print_table(summary: dict[str, Any], title: str) -> None:
    """The means as a table on the terminal."""
    kind = "clips" if "clips" in summary else "images"
    models = {name: values for name, values in summary.items() if isinstance(values, dict) and name != "bytes"}
    columns = [metric for metric in COLUMNS if any(metric in values for values in models.values())]
    table = Table(title=f"{title} ({summary[kind]} {kind})", title_justify="left")
    for heading in ("", *(COLUMNS[metric][0] for metric in columns), "PSNR to the teacher (dB)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for model, values in models.items():
        cells = [format(values[metric], COLUMNS[metric][1]) if metric in values else "" for metric in columns]
        fidelity = f"{summary['fidelity_psnr']:.2f}" if model == "student" and "fidelity_psnr" in summary else ""
        table.add_row(model, *cells, fidelity)
    Console().print(table)
