"""Small line charts as data: points in pixels and ticks, which the page's template draws as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 22, 38  # margins
COLORS = 12  # that the style sheet has
LETTER, LINE = 7.2, 13  # width of a letter and height of a line of the labels


@dataclass(frozen=True)
class Line:
    """A series.

    Attributes:
        label: for the legend.
        points: (x, y) in the units of the data; not finite ones are left out.
        color: number of its colour; it goes around after :data:`COLORS`.
        dots: names of the points, which are then marked.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: int
    dots: Sequence[str] = ()


@dataclass
class Scale:
    """From data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """(pixel, text) of 2 to 8 round values."""
        values = _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)
        return [(self(value), f"{value:g}") for value in values]


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    # Ten digits and not decimals: small values have ticks too, and no tick of a logarithmic axis becomes 0.
    return [float(f"{step * number:.10g}") for number in range(ceil(low / step), floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or where there are too few of them also what lies between."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        values = [float(f"{factor}e{power}") for power in powers for factor in factors]
        values = [value for value in values if low <= value <= high]
        if len(values) > 2:
            return values if len(values) <= 8 else values[:: ceil(len(values) / 8)]
    return _ticks(low, high)


@dataclass
class Label:
    """A word in a chart.

    Attributes:
        text: the word.
        x, y: its foot, in pixels; x is its middle.
        color: of its line; None for that of levels.
    """

    text: str
    x: float
    y: float
    color: int | None

    def overlaps(self, other: "Label") -> bool:
        room = LETTER * (len(self.text) + len(other.text)) / 2
        return abs(self.x - other.x) < room and abs(self.y - other.y) < LINE


@dataclass
class Chart:
    """One chart.

    Attributes:
        title: above it.
        x_label, y_label: under it, and above the vertical axis.
        lines: the series.
        log: whether the vertical axis is logarithmic.
        levels: (label, y) of horizontal lines.
        stages: (name, x at which it begins), in order.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    log: bool = False
    levels: list[tuple[str, float]] = field(default_factory=list)
    stages: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = [cleaned for line in self.lines if (cleaned := _clean(line, self.log)).points]
        self.levels = [(label, y) for label, y in self.levels if _drawable(y, self.log)]
        points = [point for line in self.lines for point in line.points]
        self.x = Scale(*_padded([x for x, _ in points], 0.05, False), LEFT, WIDTH - RIGHT)
        heights = [y for _, y in points] + [y for _, y in self.levels]
        self.y = Scale(*_padded(heights, 0.08, self.log), HEIGHT - BOTTOM, TOP, self.log)

    def path(self, line: Line) -> str:
        """The points of an SVG polyline."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in line.points)

    def labels(self) -> list[Label]:
        """Words for levels and dots; where two would overlap, the second is left out."""
        wanted = []
        for text, y in self.levels:
            wanted.append(Label(text, LEFT + LETTER * len(text) / 2 + 2, self.y(y) - 4, None))
        for line in self.lines:
            for text, (x, y) in zip(line.dots, line.points, strict=False):
                wanted.append(Label(text, self.x(x), self.y(y) - 8, line.color))
        placed: list[Label] = []
        for label in wanted:
            if not any(label.overlaps(other) for other in placed):
                placed.append(label)
        return placed

    def bands(self) -> list[tuple[str, float, float]]:
        """(name, left, width) in pixels of every stage."""
        begins = [self.x(max(begin, self.x.low)) for _, begin in self.stages]
        ends = [*begins[1:], WIDTH - RIGHT][: len(begins)]
        names = [name for name, _ in self.stages]
        return [(name, left, round(end - left, 1)) for name, left, end in zip(names, begins, ends, strict=True)]


def _drawable(value: float, log: bool) -> bool:
    return isfinite(value) and (value > 0 or not log)


def _clean(line: Line, log: bool) -> Line:
    kept = [number for number, (x, y) in enumerate(line.points) if isfinite(x) and _drawable(y, log)]
    dots = [line.dots[number] for number in kept] if line.dots else ()
    return replace(line, points=[line.points[number] for number in kept], dots=dots)


def _padded(values: Sequence[float], margin: float, log: bool) -> tuple[float, float]:
    """Limits a little beyond the values."""
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if log:
        factor = max(high / low, 1.5) ** margin
        return low / factor, high * factor
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room
