"""Measure models on a data set: the same numbers at the end of a run and in ``eval.py``."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from quantsr.callbacks.comparison import comparison_sheet
from quantsr.data.degradations import to_float
from quantsr.data.files import read_image
from quantsr.metrics.fidelity import psnr, psnr_y, ssim_y

Model = Callable[[Tensor], Tensor]
SHEET_ROWS = 4


def as_saved(image: Tensor) -> Tensor:
    """The image as an 8-bit file would hold it, in [0, 1]: what the papers measure."""
    return (image.clamp(0, 1) * 255).round() / 255


def bicubic(lq: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling of ``(b, 3, h, w)`` in [0, 1]."""
    return F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


@dataclass
class Report:
    """What was measured.

    Attributes:
        rows: one dict an image: ``name``, then ``<model>.psnr_y``, ``<model>.ssim`` (Y channel against ground truth)
            and, where there is a student, ``fidelity_psnr`` (RGB, student against teacher, dB).
        pictures: some images' versions by caption, for a comparison sheet; by row number.
    """

    models: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Means over the images, as in ``metrics.json``."""
        mean = {key: sum(row[key] for row in self.rows) / len(self.rows) for key in self.rows[0] if key != "name"}
        result: dict[str, Any] = {
            model: {metric: mean[f"{model}.{metric}"] for metric in ("psnr_y", "ssim")} for model in self.models
        }
        if "fidelity_psnr" in mean:
            result["fidelity_psnr"] = mean["fidelity_psnr"]
        return result | {"images": len(self.rows)}

    def sheet(self) -> Image.Image:
        """Comparison image of the pictures: a row each, PSNR-Y under every version."""
        rows = [self.rows[number] for number in self.pictures]
        notes = [{model: f"{row[f'{model}.psnr_y']:.2f} dB" for model in self.models} for row in rows]
        return comparison_sheet(list(self.pictures.values()), [row["name"] for row in rows], notes)

    def write_csv(self, path: Path) -> None:
        """One line an image."""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


@torch.no_grad()
def measure(models: dict[str, Model], data: Dataset, scale: int, images_dir: Path | None = None) -> Report:
    """Run models over a data set and compare with the ground truth, on 8-bit images.

    Args:
        models: by name, each from ``(1, 3, h, w)`` on the CPU to the CPU (see :func:`on_device`); ``bicubic`` is
            added in front. If both ``teacher`` and ``student`` are there, their outputs are compared too.
        data: samples ``{"lq", "gt", "name"}``.
        scale: upscaling factor.
        images_dir: where to save the last model's output for every image; None not to.
    """
    models = {"bicubic": lambda lq: bicubic(lq, scale), **models}
    report = Report(list(models))
    shown = set(torch.linspace(0, len(data) - 1, min(SHEET_ROWS, len(data))).round().int().tolist())
    for sample in track(_samples(data), "measuring", total=len(data), console=Console(), transient=True):
        lq, gt, name = sample["lq"][None], sample["gt"][None], sample["name"]
        outputs = {model: as_saved(run(lq)) for model, run in models.items()}
        row: dict[str, Any] = {"name": name}
        for model, sr in outputs.items():
            row |= against_truth(model, sr, gt)
        if {"teacher", "student"} <= outputs.keys():
            row["fidelity_psnr"] = psnr(outputs["student"], outputs["teacher"]).item()
        if len(report.rows) in shown:
            report.pictures[len(report.rows)] = {"lq": lq[0], **{m: sr[0] for m, sr in outputs.items()}, "gt": gt[0]}
        report.rows.append(row)
        if images_dir is not None:
            images_dir.mkdir(parents=True, exist_ok=True)
            to_pil_image(sr[0]).save(images_dir / f"{name}.png")
    return report


def on_device(model: nn.Module, device: torch.device | str) -> Model:
    """A model as a function between images on the CPU, computed on ``device``."""
    model.to(device)
    return lambda lq: model(lq.to(device)).float().cpu()


def against_truth(model: str, sr: Tensor, gt: Tensor) -> dict[str, float]:
    """PSNR-Y and SSIM of one image ``(1, 3, h, w)``, under the model's name."""
    return {f"{model}.psnr_y": psnr_y(sr, gt).item(), f"{model}.ssim": ssim_y(sr, gt).item()}


def measure_outputs(matches: Sequence[tuple[str, Path, Path]]) -> Report:
    """Compare ready-made images with ground truth: (name, output, ground truth) of each."""
    report = Report(["outputs"])
    for name, *paths in track(matches, "measuring", console=Console(), transient=True):
        sr, gt = (to_float(read_image(path))[None] for path in paths)
        report.rows.append({"name": name, **against_truth("outputs", sr, gt)})
    return report


def _samples(data: Dataset) -> Iterator[dict[str, Any]]:
    return (data[index] for index in range(len(data)))


def print_table(summary: dict[str, Any], title: str) -> None:
    """The means as a table on the terminal."""
    table = Table(title=f"{title} ({summary['images']} images)", title_justify="left")
    for heading in ("", "PSNR-Y (dB)", "SSIM", "PSNR to the teacher (dB)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for model, values in summary.items():
        if isinstance(values, dict) and "psnr_y" in values:
            fidelity = f"{summary['fidelity_psnr']:.2f}" if model == "student" and "fidelity_psnr" in summary else ""
            table.add_row(model, f"{values['psnr_y']:.2f}", f"{values['ssim']:.4f}", fidelity)
    Console().print(table)
