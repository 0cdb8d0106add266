"""The means on the terminal."""

from typing import Any

from rich.table import Table

from quantsr.metrics.choice import ARROWS, lower_is_better
from quantsr.terminal import print_whole

HEADINGS = {
    "psnr_y": ("PSNR-Y (dB) ↑", ".2f"),
    "ssim": ("SSIM ↑", ".4f"),
    "warping": ("E*_warp (1e-3) ↓", ".3f"),
    "dover": ("DOVER ↑", ".4f"),
}
TWO_DIGITS = ("musiq", "fid")  # as papers print them
NO_MODELS = ("bytes", "cost", "absent")  # Dictionaries of a summary that are not the metrics of a model.


def print_table(summary: dict[str, Any], title: str) -> None:
    """The means as a table, a row a model; a metric that is absent has a column that says so, and a line below."""
    kind = "clips" if "clips" in summary else "images"
    models = {name: values for name, values in summary.items() if isinstance(values, dict) and name not in NO_MODELS}
    absent = summary.get("absent", {})
    columns = _columns([*(metric for values in models.values() for metric in values), *absent])
    table = Table(title=f"{title} ({summary[kind]} {kind})", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*(_heading(metric)[0] for metric in columns), "PSNR to the teacher (dB) ↑"):
        table.add_column(heading, justify="right")
    for model, values in models.items():
        cells = [_cell(model, values, metric, absent) for metric in columns]
        fidelity = f"{summary['fidelity_psnr']:.2f}" if model == "student" and "fidelity_psnr" in summary else ""
        table.add_row(model, *cells, fidelity)
    print_whole(table)
    for metric, reason in absent.items():
        print(f"absent   {metric}: {reason}")


def _columns(metrics: list[str]) -> list[str]:
    """Each once, those with a place of their own first."""
    others = [metric for metric in dict.fromkeys(metrics) if metric not in HEADINGS]
    return [metric for metric in HEADINGS if metric in metrics] + others


def _heading(metric: str) -> tuple[str, str]:
    """Name with an arrow up if higher is better, and the format of its values."""
    digits = ".2f" if metric in TWO_DIGITS else ".4f"
    return HEADINGS.get(metric) or (f"{metric.upper()} {ARROWS[lower_is_better(metric)]}", digits)


def _cell(model: str, values: dict[str, float], metric: str, absent: dict[str, str]) -> str:
    if metric in values:
        return format(values[metric], _heading(metric)[1])
    return "absent" if metric in absent and model != "gt" else ""
