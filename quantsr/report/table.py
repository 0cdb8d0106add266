"""The table of a comparison as data: data set by bits by method, means over seeds."""

from dataclasses import dataclass, field
from statistics import fmean, stdev

from quantsr.report.columns import Column
from quantsr.report.jobs import Job


@dataclass
class Cell:
    """One figure.

    Attributes:
        values: one a seed; none where it was not measured.
        digits: behind the decimal point.
        absent: why it was asked for and not measured.
        rank: 1 for the best of its group, 2 for the second, else 0.
    """

    values: list[float]
    digits: int
    absent: str = ""
    rank: int = 0

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """``23.91 ± 0.02``; ``absent`` for what was asked for and not measured."""
        if self.mean is None:
            return "absent" if self.absent else ""
        mean = f"{self.mean:.{self.digits}f}"
        return mean if self.spread is None else f"{mean} ± {self.spread:.{self.digits}f}"


@dataclass
class Row:
    """One method with its options, over all seeds.

    Attributes:
        method: its name, or that of a reference (``bicubic``, ``teacher``, ``gt``).
        options: what else sets it apart, by key.
        cells: by the key of the column.
        jobs: those it is made of, one a seed.
    """

    method: str
    options: dict[str, str]
    cells: dict[str, Cell]
    jobs: list[Job]

    @property
    def label(self) -> str:
        """``qartsr rank=0``: the method's own options go without their group."""
        return " ".join(
            [self.method, *(f"{key.removeprefix('method.')}={value}" for key, value in self.options.items())]
        )

    @property
    def seeds(self) -> int:
        return len(self.jobs)


@dataclass
class Section:
    """What was measured on one data set: references, then the methods by bits."""

    data: str
    count: str
    references: list[Row]
    groups: dict[str, list[Row]]

    @property
    def rows(self) -> list[Row]:
        """Those of all groups, without references."""
        return [row for rows in self.groups.values() for row in rows]


@dataclass
class Table:
    """The whole comparison.

    Attributes:
        columns: those that any row has a figure for.
        sections: one a data set.
        absent: metrics that were asked for and not measured, by some jobs or all, with the reason.
        notes: sentences on jobs that are not in it, or should not be compared.
    """

    columns: list[Column]
    sections: list[Section]
    absent: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def columns_of(self, section: Section) -> list[Column]:
        """The columns that a row of the section has a figure for, or a reason why not."""
        rows = [*section.references, *section.rows]
        return [column for column in self.columns if any(row.cells[column.key].text for row in rows)]

    @property
    def over_seeds(self) -> bool:
        """Whether any row is a mean."""
        return any(row.seeds > 1 for section in self.sections for row in section.rows)
