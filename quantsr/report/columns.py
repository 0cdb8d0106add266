"""What runs are compared by: quality, with the direction that is better, and cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantsr.report.jobs import Job

UP, DOWN = "↑", "↓"


@dataclass(frozen=True)
class Column:
    """What is compared.

    Attributes:
        key: its name in files.
        heading: its name for people.
        digits: behind the decimal point.
        better: :data:`UP` where more is better, :data:`DOWN` where less is; empty for costs, which are not ranked.
    """

    key: str
    heading: str
    digits: int
    better: str = ""

    @property
    def title(self) -> str:
        """The heading with the direction."""
        return f"{self.heading} {self.better}".strip()


QUALITY = {
    "psnr_y": Column("psnr_y", "PSNR-Y (dB)", 2, UP),
    "ssim": Column("ssim", "SSIM", 4, UP),
    "warping": Column("warping", "E*_warp (1e-3)", 3, DOWN),
    "lpips": Column("lpips", "LPIPS", 4, DOWN),
    "dists": Column("dists", "DISTS", 4, DOWN),
    "niqe": Column("niqe", "NIQE", 4, DOWN),
    "fid": Column("fid", "FID", 2, DOWN),
    "musiq": Column("musiq", "MUSIQ", 2, UP),
    "maniqa": Column("maniqa", "MANIQA", 4, UP),
    "clipiqa": Column("clipiqa", "CLIPIQA", 4, UP),
    "dover": Column("dover", "DOVER", 4, UP),
}
"""Metrics in the papers' order; others are shown behind them by their names."""

FIDELITY = Column("fidelity_psnr", "PSNR to teacher (dB)", 2, UP)
COSTS: dict[Column, Callable[[dict[str, Any]], float | None]] = {
    Column("parameters_saved", "denoiser parameters saved (%)", 2): lambda m: _percent(m, "parameters_saved"),
    Column("operations_saved", "denoiser operations saved (%)", 2): lambda m: _percent(m, "operations_saved"),
    Column("megabytes", "MB", 2): lambda m: m["bytes"]["artefact"] / 1e6 if "bytes" in m else None,
    Column("seconds", "calibration (s)", 0): lambda m: m.get("seconds"),
}


def _percent(metrics: dict[str, Any], key: str) -> float | None:
    """A share of the denoiser alone, as the papers count: they leave the autoencoder out."""
    share = metrics.get("cost", {}).get(f"denoiser_{key}")
    return None if share is None else 100 * share


def find_columns(jobs: Sequence[Job]) -> tuple[list[Column], dict[str, str]]:
    """Columns that have a figure, and why metrics that were asked for have none, in some jobs or in all."""
    measured = {metric for job in jobs for metric in job.own}
    columns = [column for key, column in QUALITY.items() if key in measured]
    columns += [Column(metric, metric.upper(), 4, _direction(metric)) for metric in sorted(measured - QUALITY.keys())]
    if any("fidelity_psnr" in job.metrics for job in jobs):
        columns.append(FIDELITY)
    columns += [column for column, read in COSTS.items() if any(read(job.metrics) is not None for job in jobs)]
    reasons = {metric: reason for job in jobs for metric, reason in job.metrics.get("absent", {}).items()}
    return columns, reasons


def _direction(metric: str) -> str:
    """Of a metric by name; none where that is not known."""
    from quantsr.metrics.choice import lower_is_better  # Takes seconds.

    try:
        return DOWN if lower_is_better(metric) else UP
    except KeyError:
        return ""
