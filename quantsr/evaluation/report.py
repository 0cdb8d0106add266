"""What was measured: a row an image or clip, their means, pictures of some."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from quantsr.callbacks.comparison import comparison_sheet

Picture = tuple[str, dict[str, Tensor], dict[str, str]]
FRAMES_SHOWN = 3  # of a clip


@dataclass
class Report:
    """What was measured.

    Attributes:
        models: what was compared with the ground truth.
        rows: one dict an image or clip: ``name``, then of every model ``<model>.psnr_y`` and ``<model>.ssim`` (Y
            channel against ground truth, where there is one) and other metrics by name, means over the frames of a
            clip; of clips also ``<model>.warping`` (E*_warp, of two frames or more) and perhaps ``<model>.dover``. What
            needs no reference is there of ``gt`` too. Where there is a student, ``fidelity_psnr`` (RGB, against the
            teacher, dB).
        frames: one dict a frame of every clip: ``name``, ``frame``, and the same without what is of whole clips.
        sets: metrics of all images or frames as a set, by model.
        pictures: for a comparison sheet, (name, versions by caption, notes by caption) of some images, or of the
            first, middle and last frame of some clips.
        absent: why metrics that were asked for were not measured, by name.
    """

    models: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Means over the images or clips that have a value, as in ``metrics.json``."""
        result: dict[str, Any] = {model: {} for model in self.models}
        for key, value in means([{k: v for k, v in row.items() if k != "name"} for row in self.rows]).items():
            model, _, metric = key.rpartition(".")
            owner = result.setdefault(model, {}) if model else result
            owner[metric] = value
        for model, values in self.sets.items():
            result[model] |= values
        absent = {"absent": self.absent} if self.absent else {}
        return result | {"images" if not self.frames else "clips": len(self.rows)} | absent

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


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every key over those rows that have it."""
    columns = {key: [row[key] for row in rows if key in row] for key in _keys(rows)}
    return {key: sum(values) / len(values) for key, values in columns.items()}


def _keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _keys(rows))
        writer.writeheader()
        writer.writerows(rows)


def pictures(
    name: str, versions: dict[str, Tensor], row: dict[str, float], frames: Sequence[dict[str, Any]]
) -> list[Picture]:
    """What a comparison sheet shows of an image (all of it) or of a clip (three frames), with its figures."""
    if versions["lq"].ndim == 3:
        return [(name, versions, _notes(versions, row))]
    chosen = sorted(spread(len(versions["lq"]), FRAMES_SHOWN))
    each = [{model: clip[i] for model, clip in versions.items()} for i in chosen]
    return [(f"{name}, frame {i}", v, _notes(v, frames[i])) for i, v in zip(chosen, each, strict=True)]


def _notes(versions: dict[str, Tensor], values: dict[str, Any]) -> dict[str, str]:
    return {m: f"{values[f'{m}.psnr_y']:.2f} dB" for m in versions if f"{m}.psnr_y" in values}


def spread(length: int, count: int) -> set[int]:
    """``count`` numbers below ``length``, evenly spread from the first to the last."""
    return set(torch.linspace(0, length - 1, min(count, length)).round().int().tolist())
