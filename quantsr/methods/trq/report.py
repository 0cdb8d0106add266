"""The error curve over timesteps as a file of numbers, a table on the terminal and a picture."""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from quantsr.methods.trq.curve import TimestepCurve

MEASURED, BAND, CHOSEN, MUTED = "#2563eb", "#d4d4d8", "#dc2626", "#71717a"


def write_csv(curve: TimestepCurve, chosen: int, path: Path) -> None:
    """One line a candidate."""
    rows = [point._asdict() | {"chosen": int(point.timestep == chosen)} for point in curve.points()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_curve(curve: TimestepCurve, chosen: int, title: str) -> None:
    """The same as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("t", "HQ-latent RMSE", "epsilon RMSE", "needed epsilon RMS", "factor", ""):
        table.add_column(heading, justify="right")
    for t, *values in curve.points():
        style = "bold" if t == chosen else None
        table.add_row(str(t), *(f"{value:.4g}" for value in values), "chosen" if t == chosen else "", style=style)
    Console().print(table)


def draw(curve: TimestepCurve, chosen: int, limit: float, title: str, path: Path) -> None:
    """The errors of z_H over t beside the curve that a constant error of epsilon would give, and the needed epsilon.

    Args:
        curve: what was measured.
        chosen: timestep to mark.
        limit: largest root mean square of the needed epsilon.
        title: what was measured, in words.
        path: the picture, a PNG.
    """
    figure = Figure(figsize=(7.2, 6.0), dpi=150, layout="constrained")
    errors, needed = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_errors(errors, curve, chosen, limit)
    _draw_needed(needed, curve, limit)
    for axes in (errors, needed):
        axes.axvline(chosen, color=CHOSEN, linewidth=1, linestyle=":", zorder=0)
        axes.set_yscale("log")
        axes.grid(True, which="major", color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    errors.set_title(title, loc="left", fontsize=11)
    errors.legend(frameon=False, fontsize=9)
    needed.set_xlabel("timestep t")
    figure.savefig(path)


def _draw_errors(axes: Axes, curve: TimestepCurve, chosen: int, limit: float) -> None:
    points = curve.points()
    mean = sum(point.epsilon_rmse for point in points) / len(points)
    every = range(points[0].timestep, points[-1].timestep + 1)
    label = rf"$\sqrt{{1-\bar\alpha_t}}\,/\sqrt{{\bar\alpha_t}}\;\times$ {mean:.3g}, the mean error of $\epsilon$"
    # Broad and pale: where epsilon's error does not depend on t, the points lie on it.
    axes.plot(every, [mean * curve.factor(t) for t in every], color=BAND, linewidth=5, label=label)
    for able, filling, name in (
        (True, MEASURED, "measured"),
        (False, "white", "measured, but needs too large an epsilon"),
    ):
        some = [point for point in points if (point.needed_epsilon_rms <= limit) == able]
        if some:
            axes.plot(*_columns(some, "hq_latent_rmse"), "o", color=MEASURED, markerfacecolor=filling, label=name)
    best = [point for point in points if point.timestep == chosen]
    axes.plot(*_columns(best, "hq_latent_rmse"), "o", color=CHOSEN, markersize=9, label=f"chosen: t = {chosen}")
    axes.set_ylabel("HQ-latent error (RMS)")


def _draw_needed(axes: Axes, curve: TimestepCurve, limit: float) -> None:
    axes.plot(*_columns(curve.points(), "needed_epsilon_rms"), "o-", color=MEASURED, linewidth=1.6, markersize=4)
    axes.axhline(limit, color=MUTED, linewidth=1.2, linestyle="--")
    where = {"xycoords": ("axes fraction", "data"), "xytext": (-2, -3), "textcoords": "offset points"}
    axes.annotate(f"limit {limit:g}", (1, limit), **where, ha="right", va="top", color=MUTED, fontsize=9)
    axes.set_ylabel("needed epsilon (RMS)")


def _columns(points: list, name: str) -> tuple[list[int], list[float]]:
    """x and y of a line."""
    return [point.timestep for point in points], [getattr(point, name) for point in points]
