"""From jobs to the table: groups, means over seeds, references, the best two of each group."""

from collections.abc import Callable, Iterable, Sequence
from math import isnan
from statistics import fmean

from quantsr.report.columns import COSTS, FIDELITY, UP, Column, find_columns
from quantsr.report.jobs import Job
from quantsr.report.table import Cell, Row, Section, Table


def build_table(jobs: Sequence[Job]) -> Table:
    """Group the jobs, take means over seeds and rank the methods at the same bits on the same data."""
    notes = [f"{job.folder.name} ({job.label}): {job.problem}" for job in jobs if job.metrics is None]
    finished, repeated = _last([job for job in jobs if job.metrics is not None])
    notes += [f"{job.folder} ({job.label}): left out, {other.folder} is the same run again" for job, other in repeated]
    columns, absent = find_columns(finished)
    sections = [_section(data, own, columns) for data, own in _by(finished, lambda job: job.data).items()]
    notes += [warning for section in sections for warning in mismatches(section)]
    return Table(columns, sections, absent, notes)


def _last(jobs: list[Job]) -> tuple[list[Job], list[tuple[Job, Job]]]:
    """Of jobs that are alike, seed included, the last given; and the others, each with the one that is kept."""
    last = {(job.data, job.teacher, job.label): job for job in jobs}
    pairs = [(job, last[job.data, job.teacher, job.label]) for job in jobs]
    return [job for job, kept in pairs if job is kept], [(job, kept) for job, kept in pairs if job is not kept]


def _by(jobs: Iterable[Job], key: Callable[[Job], str]) -> dict[str, list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups


def _section(data: str, jobs: list[Job], columns: list[Column]) -> Section:
    several = len({job.teacher for job in jobs}) > 1
    counts = {f"{job.metrics[kind]} {kind}" for job in jobs for kind in ("images", "clips") if kind in job.metrics}
    groups = {}
    for bits, own in sorted(_by(jobs, lambda job: job.bits).items(), key=lambda item: _descending(item[0])):
        rows = []
        for same in _by(own, lambda job: str((job.method, job.teacher, job.differs))).values():
            options = ({"teacher": same[0].teacher} if several else {}) | same[0].differs
            rows.append(Row(same[0].method, options, _cells([_figures(job) for job in same], columns, same), same))
        rank(rows, columns)
        groups[bits] = rows
    return Section(data, " or ".join(sorted(counts)), _references(jobs, columns, several), groups)


def _descending(bits: str) -> tuple[int, ...]:
    """w8a8 before w4a8 before w4a4; what is not quantized first."""
    return tuple(-int(number) for number in bits[1:].split("a")) if bits else (-99,)


def _figures(job: Job) -> dict[str, float | None]:
    figures = {**job.own, FIDELITY.key: job.metrics.get("fidelity_psnr")}
    return figures | {column.key: read(job.metrics) for column, read in COSTS.items()}


def _cells(figures: list[dict[str, float | None]], columns: list[Column], jobs: list[Job]) -> dict[str, Cell]:
    cells = {}
    for column in columns:
        values = [own[column.key] for own in figures if own.get(column.key) is not None]
        if values and column in COSTS:
            values = [fmean(values)]  # The spread of a cost says nothing about a method.
        reasons = (job.metrics.get("absent", {}).get(column.key, "") for job in jobs)
        cells[column.key] = Cell(values, column.digits, "" if values else next(filter(None, reasons), ""))
    return cells


def _references(jobs: list[Job], columns: list[Column], several: bool) -> list[Row]:
    """Bicubic, teacher and ground truth: one figure a seed, because the seed may draw what is measured on."""
    rows = []
    for name, label in (("bicubic", "bicubic"), ("teacher", "teacher"), ("gt", "ground truth")):
        having = [job for job in jobs if name in job.metrics and job.metrics[name] is not job.own]
        for teacher, own in (_by(having, lambda job: job.teacher) if name == "teacher" else {"": having}).items():
            first = list({job.seed: job for job in reversed(own)}.values())[::-1]
            figures = [_reference_figures(job, name) for job in first]
            if first and all(figures[0] == other for other in figures):  # The seed does not matter here.
                first, figures = first[:1], figures[:1]
            if first:
                rows.append(
                    Row(label, {"teacher": teacher} if several and teacher else {}, _cells(figures, columns, []), first)
                )
    return rows


def _reference_figures(job: Job, name: str) -> dict[str, float | None]:
    figures = dict(job.metrics[name])
    if name == "teacher" and "bytes" in job.metrics:
        figures["megabytes"] = job.metrics["bytes"]["fp32"] / 1e6
    return figures


def mismatches(section: Section) -> list[str]:
    """Jobs of one data set and seed that were not measured on the same pictures: bicubic tells."""
    found = []
    for seed, jobs in _by((job for row in section.rows for job in row.jobs), lambda job: job.seed).items():
        compared = (job for job in jobs if "psnr_y" in job.metrics.get("bicubic", {}))
        figures = _by(compared, lambda job: f"{job.metrics['bicubic']['psnr_y']:.2f}")
        if len(figures) > 1:
            which = " and ".join(f"{figure} dB in {own[0].folder.name}" for figure, own in figures.items())
            found.append(
                f"{section.data}, seed {seed}: not all jobs were measured on the same pictures, bicubic has {which}"
            )
    return found


def rank(rows: list[Row], columns: list[Column]) -> None:
    """Mark the best and the second of several rows, column by column; what prints alike ranks alike."""
    for column in columns:
        cells = [row.cells[column.key] for row in rows if row.cells[column.key].mean is not None]
        cells = [cell for cell in cells if not isnan(cell.mean)]
        if not column.better or len(cells) < 2:
            continue
        order = sorted({round(cell.mean, column.digits) for cell in cells}, reverse=column.better == UP)
        for cell in cells:
            place = order.index(round(cell.mean, column.digits)) + 1
            cell.rank = place if place <= 2 else 0
