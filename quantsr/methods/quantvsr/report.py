"""The allocated ranks as a file of numbers, a table on the terminal and a picture."""

import csv
from collections import Counter
from collections.abc import Sequence
from math import floor, log10
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from quantsr.methods.quantvsr.allocation import Allocation

GRID = "#e5e7eb"
LESS = {"color": "#e0e7ff", "zorder": 0.1, "label": "\N{MINUS SIGN}1 a sample"}
MORE = {"color": "#fee2e2", "zorder": 0.1, "label": "+1 a sample"}
LINE = {"color": "#71717a", "linewidth": 1, "linestyle": "--", "zorder": 0.5}
NAMED = 40
"""So many layers at most are named in the picture of an image model."""


def write_csv(allocation: Allocation, path: Path) -> None:
    """One line a layer: its mean complexities, the rank asked for and the rank it gets."""
    real = allocation.real_ranks
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "spatial", "temporal", "asked_rank", "rank"])
        for name, asked in allocation.ranks.items():
            writer.writerow([name, allocation.spatial[name], allocation.temporal[name], asked, real[name]])


def print_allocation(allocation: Allocation, title: str, top: int = 10, bottom: int = 5) -> None:
    """The layers with the highest and the lowest ranks as a table, and all ranks in one line.

    Args:
        allocation: of all layers.
        title: of the table.
        top, bottom: number of layers from either end, by rank and then spatial complexity.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("spatial", "temporal", "rank"):
        table.add_column(heading, justify="right")
    real = allocation.real_ranks
    order = sorted(real, key=lambda name: (real[name], allocation.spatial[name]), reverse=True)
    hidden = len(order) - top - bottom
    for number, name in enumerate(order):
        if number < top or number >= top + hidden:
            complexities = (f"{c[name]:.4g}" for c in (allocation.spatial, allocation.temporal))
            table.add_row(name, *complexities, str(real[name]))
        elif number == top:
            table.add_row(f"... {hidden} more", style="dim")
    console = Console()
    console.print(table)
    console.print(_summary(allocation), highlight=False)


def _summary(allocation: Allocation) -> str:
    real = allocation.real_ranks
    counts = ", ".join(f"{rank} in {count}" for rank, count in sorted(Counter(real.values()).items()))
    line = f"average rank {allocation.average_rank:.4g} over {len(real)} layers: rank {counts}"
    cut = sum(real[name] < asked for name, asked in allocation.ranks.items())
    return f"{line} ({cut} cut to the rank of their weight)" if cut else line


def draw(allocation: Allocation, title: str, path: Path) -> None:
    """One dot a layer, coloured by the rank asked for, with the quantiles and the regions that add to a rank.

    Videos: temporal over spatial complexity. Images: layers in the order of their spatial complexity.

    Args:
        allocation: of all layers.
        title: what was measured, in words.
        path: the picture, a PNG 1200 pixels wide.
    """
    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_clips(axes, allocation) if allocation.moving else _draw_images(axes, allocation)
    axes.set_xlabel("spatial complexity")
    axes.grid(True, which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    columns = 1 + len(set(allocation.ranks.values())) // 25
    style = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "ncols": columns}
    figure.legend(loc="outside right upper", title="rank (layers)", **style)
    figure.savefig(path)


def _draw_clips(axes: Axes, allocation: Allocation) -> None:
    q, names = allocation.quantiles, list(allocation.ranks)
    spatial, temporal = ([means[name] for name in names] for means in (allocation.spatial, allocation.temporal))
    left, right = _scale(axes, "x", [*spatial, *q[:2]])
    bottom, top = _scale(axes, "y", [*temporal, *q[2:]])
    low, high = (left, q.spatial_lower, bottom, q.temporal_lower), (q.spatial_upper, right, q.temporal_upper, top)
    _dots(axes, allocation, spatial, temporal)
    for (x0, x1, y0, y1), style in ((high, MORE), (low, LESS)):
        axes.fill([x0, x1, x1, x0], [y0, y0, y1, y1], **style)
    for bound in q[:2]:
        axes.axvline(bound, **LINE)
    for bound in q[2:]:
        axes.axhline(bound, **LINE)
    axes.set_ylabel("temporal complexity")


def _draw_images(axes: Axes, allocation: Allocation) -> None:
    order = sorted(allocation.ranks, key=lambda name: allocation.spatial[name])
    place = {name: number for number, name in enumerate(order)}
    spatial, q = [allocation.spatial[name] for name in allocation.ranks], allocation.quantiles
    left, right = _scale(axes, "x", [*spatial, *q[:2]])
    _dots(axes, allocation, spatial, [place[name] for name in allocation.ranks])
    axes.axvspan(q.spatial_upper, right, **MORE)
    axes.axvspan(left, q.spatial_lower, **LESS)
    for bound in q[:2]:
        axes.axvline(bound, **LINE)
    margin = 0.02 * len(order) + 0.5
    axes.set_ylim(-margin, len(order) - 1 + margin)
    if len(order) <= NAMED:
        axes.set_yticks(range(len(order)), order, fontsize=6)
    else:
        axes.set_ylabel("layers, in the order of their mean complexity")


def _scale(axes: Axes, which: str, values: list[float]) -> tuple[float, float]:
    """Make an axis logarithmic, with a linear piece down to 0 where a value is 0; returns its limits."""
    positive = [value for value in values if value > 0] or [1.0]
    smallest, largest = min(positive), max(positive)
    margin = max(largest / smallest, 2) ** 0.06
    if len(positive) == len(values):
        scale, limits = {"value": "log"}, (smallest / margin, largest * margin)
    else:
        linear = 10.0 ** floor(log10(smallest))
        scale, limits = {"value": "symlog", "linthresh": linear}, (-0.3 * linear, largest * margin)
    axes.set(**{f"{which}lim": limits})
    getattr(axes, f"set_{which}scale")(**scale)
    return limits


def _dots(axes: Axes, allocation: Allocation, x: Sequence[float], y: Sequence[float]) -> None:
    """All layers, the highest ranks on top, with one legend entry a rank."""
    by_rank: dict[int, list[tuple[float, float]]] = {}
    for rank, *dot in zip(allocation.ranks.values(), x, y, strict=True):
        by_rank.setdefault(rank, []).append((*dot,))
    smallest, largest = min(by_rank), max(by_rank)
    for rank, dots in sorted(by_rank.items()):
        share = (rank - smallest) / max(largest - smallest, 1)
        color, size = to_hex(colormaps["plasma_r"](0.15 + 0.8 * share)), 22 + 30 * share
        label = f"{rank} ({len(dots)})"
        axes.scatter(
            *zip(*dots, strict=True), s=size, color=color, edgecolor="white", linewidth=0.4, label=label, zorder=2
        )
