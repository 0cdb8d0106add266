"""The table that a sweep ends in: a row a job, by what sets it apart from the others."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

HEADINGS = ("PSNR-Y (dB)", "SSIM", "PSNR to teacher (dB)", "teacher PSNR-Y (dB)", "MB")
NARROW = ("PSNR-Y\n(dB)", "SSIM", "PSNR to\nteacher\n(dB)", "teacher\nPSNR-Y\n(dB)", "MB")
"""The same on a terminal, where the labels need the width."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: its run folder.
        differs: its overrides that not all jobs have alike, by key.
        metrics: what ``metrics.json`` holds; None for a job that did not finish.
    """

    folder: Path
    differs: dict[str, str]
    metrics: dict[str, Any] | None

    @property
    def number(self) -> str:
        """The number that its folder's name begins with."""
        return self.folder.name.partition("_")[0]

    @property
    def label(self) -> str:
        """``method=minmax seed=1``; the folder's name where nothing differs."""
        return " ".join(f"{key}={value}" for key, value in self.differs.items()) or self.folder.name

    def cells(self) -> list[str]:
        """Its figures under :data:`HEADINGS`, empty where it has none."""
        values = self.metrics
        own = values.get("student", values["teacher"])
        fidelity = f"{values['fidelity_psnr']:.2f}" if "fidelity_psnr" in values else ""
        size = f"{values['bytes']['artefact'] / 1e6:.2f}" if "bytes" in values else ""
        return [f"{own['psnr_y']:.2f}", f"{own['ssim']:.4f}", fidelity, f"{values['teacher']['psnr_y']:.2f}", size]


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep's folder that came to an end, in the order they ran; those that failed too."""
    folders = sorted(
        {path.parent for end in ("metrics.json", "failed") for path in folder.glob(f"*/{end}")}, key=_order
    )
    given = [_overrides(job) for job in folders]
    differing = _differing(given)
    jobs = []
    for job, overrides in zip(folders, given, strict=True):
        metrics = job / "metrics.json"
        differs = {key: overrides[key] for key in differing if key in overrides}
        jobs.append(Job(job, differs, json.loads(metrics.read_text()) if metrics.is_file() else None))
    return jobs


def _order(job: Path) -> tuple[int, str]:
    number = job.name.partition("_")[0]
    return (int(number) if number.isdecimal() else 0), job.name


def _overrides(job: Path) -> dict[str, str]:
    """What a job was started with; how a key was added (``+key``, ``++key``) says nothing about the job."""
    file = job / ".hydra" / "overrides.yaml"  # Hydra can be told not to write it.
    pairs = (override.lstrip("+").partition("=") for override in (OmegaConf.load(file) if file.is_file() else ()))
    return {key: value for key, _, value in pairs}


def _differing(given: list[dict[str, str]]) -> list[str]:
    """Keys that not all jobs have with the same value, in the order of the command line."""
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    return [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]


def print_jobs(jobs: list[Job]) -> None:
    """Print the table. Where the terminal is narrow, only the labels are wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="sweep", title_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("job", overflow="fold")
    for heading in NARROW:
        table.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        table.add_row(job.number, Text(job.label), *job.cells())  # Text: brackets in it are no markup.
    Console().print(table)


def write_jobs(jobs: list[Job], folder: Path) -> list[Path]:
    """Write the table to ``sweep.csv``, with a column for every key that differs, and ``sweep.md``.

    Returns:
        The two files.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job.differs))
    with (folder / "sweep.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["job", *keys, *HEADINGS])
        rows.writerows([job.folder.name, *(job.differs.get(key, "") for key in keys), *job.cells()] for job in jobs)
    lines = [["#", "job", *HEADINGS], ["--:", "---", *("--:" for _ in HEADINGS)]]
    lines += [[job.number, job.label.replace("|", "\\|"), *job.cells()] for job in jobs]
    (folder / "sweep.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    return [folder / "sweep.csv", folder / "sweep.md"]
