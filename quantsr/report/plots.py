"""The charts of a comparison: losses over the steps, and quality against size."""

import csv
from math import ceil, isfinite

from quantsr.report.charts import COLORS, Chart, Line
from quantsr.report.columns import FIDELITY, UP, Column
from quantsr.report.formats import NOT_QUANTIZED
from quantsr.report.jobs import Job
from quantsr.report.table import Row, Section, Table

POINTS = 240  # of a loss curve, at most
STAGE = "loss/"


def loss_charts(section: Section) -> list[Chart]:
    """One chart a method, one line for its bits each; stages as in the first. What does not train has none."""
    by_method: dict[str, list[tuple[str, Row]]] = {}
    for bits, rows in section.groups.items():
        for row in rows:
            by_method.setdefault(row.label, []).append((bits, row))
    charts = []
    for label, rows in by_method.items():
        lines, stages = [], []
        for number, (bits, row) in enumerate(rows):
            points, own_stages = read_losses(row.jobs[0])
            if len(points) > 1:
                lines.append(Line(bits or NOT_QUANTIZED, points, number % COLORS))
                stages = stages or own_stages
        if lines:
            charts.append(Chart(label, "step", "loss", lines, log=True, stages=stages))
    return charts


def read_losses(job: Job) -> tuple[list[tuple[float, float]], list[tuple[str, float]]]:
    """(step, loss) of a run's ``metrics.csv``, thinned out to :data:`POINTS`, and (stage, first step)."""
    file = job.folder / "metrics.csv"
    if not file.is_file():
        return [], []
    points, stages = [], []
    with file.open(newline="", errors="replace") as lines:
        for row in csv.DictReader(lines):
            try:
                step, loss = float(row["step"]), float(row["loss"])
            except (KeyError, TypeError, ValueError):  # A row of other figures, or cut off.
                continue
            stage = next(
                (key[len(STAGE) :] for key, value in row.items() if key and key.startswith(STAGE) and value), ""
            )
            if stage and (not stages or stages[-1][0] != stage):
                stages.append((stage, step))
            if isfinite(loss):
                points.append((step, loss))
    stride = max(1, ceil(len(points) / POINTS))
    return points[::stride], stages


def tradeoff_charts(table: Table, section: Section) -> list[Chart]:
    """Quality against size: PSNR-Y, PSNR to the teacher and the first metric of which less is better.

    Size is what the artefact takes on disk, or the share of parameters saved where that is not known.
    """
    columns = {column.key: column for column in table.columns_of(section)}
    size = columns.get("megabytes") or columns.get("parameters_saved")
    lower = [column for column in columns.values() if column.better and column.better != UP]
    shown = [columns[key] for key in ("psnr_y", FIDELITY.key) if key in columns] + lower[:1]
    charts = [_tradeoff(section, size, column) for column in shown] if size else []
    return [chart for chart in charts if chart.lines]


def _tradeoff(section: Section, size: Column, quality: Column) -> Chart:
    by_method: dict[str, list[tuple[float, float, str]]] = {}
    for bits, rows in section.groups.items():
        for row in rows:
            own = by_method.setdefault(row.label, [])  # First, so that every chart gives it the same colour.
            x, y = row.cells[size.key].mean, row.cells[quality.key].mean
            if x is not None and y is not None:
                own.append((x, y, bits or NOT_QUANTIZED))
    lines = []
    for number, (label, dots) in enumerate(by_method.items()):
        dots.sort()
        lines.append(Line(label, [dot[:2] for dot in dots], number % COLORS, [dot[2] for dot in dots]))
    levels = [(row.label, row.cells[quality.key].mean) for row in section.references]
    levels = [(label, level) for label, level in levels if level is not None]
    return Chart(quality.title, size.heading, "", lines, levels=levels)
