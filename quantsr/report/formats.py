"""The table as CSV, Markdown, LaTeX and on the terminal."""

import csv
import io
import re
from collections.abc import Iterator

from quantsr.report.columns import DOWN, UP
from quantsr.report.table import Cell, Row, Section, Table

NOT_QUANTIZED = "float32"


def lines(section: Section) -> Iterator[tuple[str, Row]]:
    """The rows of a section with their bits, which are empty for references."""
    for row in section.references:
        yield "", row
    for bits, rows in section.groups.items():
        for row in rows:
            yield bits or NOT_QUANTIZED, row


def title(section: Section) -> str:
    """``photos (10 images)``."""
    return f"{section.data} ({section.count})" if section.count else section.data


def as_csv(table: Table) -> str:
    """One line a row, a column for every option that differs, means and spreads with six significant digits."""
    rows = [line for section in table.sections for line in lines(section)]
    options = list(dict.fromkeys(key for _, row in rows for key in row.options))
    spreads = [
        column.key for column in table.columns if any(row.cells[column.key].spread is not None for _, row in rows)
    ]
    header = ["data", "bits", "method", *options, "seeds"]
    for column in table.columns:
        header += [column.key, *([f"{column.key}_spread"] if column.key in spreads else [])]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for section in table.sections:
        for bits, row in lines(section):
            cells = [section.data, bits, row.method, *(row.options.get(key, "") for key in options), row.seeds]
            for column in table.columns:
                cell = row.cells[column.key]
                cells.append(cell.text if cell.mean is None else f"{cell.mean:.6g}")
                if column.key in spreads:
                    cells.append("" if cell.spread is None else f"{cell.spread:.6g}")
            writer.writerow(cells)
    return file.getvalue()


def footnotes(table: Table) -> list[str]:
    """What a reader has to know to read the table, one sentence each."""
    notes = [
        f"{UP} more is better, {DOWN} less is better. Among methods at the same bits the best is bold, "
        "the second underlined."
    ]
    if table.over_seeds:
        notes.append("Over several seeds: mean ± sample standard deviation.")
    shown = {column.key for column in table.columns}
    for metric, reason in table.absent.items():
        notes.append(f"{metric} is absent{' in some rows' if metric in shown else ''}: {reason}.")
    return notes + [f"Note: {note}." for note in table.notes]


def as_markdown(table: Table) -> str:
    """A table a data set; the best in bold, the second in ``<u>``."""
    parts = []
    for section in table.sections:
        columns = table.columns_of(section)
        seeds = ["seeds"] if table.over_seeds else []
        rows = [["bits", "method", *seeds, *(_markdown(column.title) for column in columns)]]
        rows += [["---", "---", *("--:" for _ in [*seeds, *columns])]]
        for bits, row in lines(section):
            cells = (_marked(row.cells[column.key], "**{}**", "<u>{}</u>") for column in columns)
            rows.append([bits, _markdown(row.label), *([str(row.seeds)] if seeds else []), *cells])
        parts.append(f"### {_markdown(title(section))}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    parts.append("".join(f"- {_markdown(note)}\n" for note in footnotes(table)))
    return "\n".join(parts)


def _marked(cell: Cell, best: str, second: str) -> str:
    return {1: best, 2: second}.get(cell.rank, "{}").format(cell.text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", re.sub(r"\s+", " ", text))


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    UP: r"$\uparrow$",
    DOWN: r"$\downarrow$",
}


def as_latex(table: Table) -> str:
    """A ``tabular`` a data set, for the packages ``booktabs`` and ``inputenc`` (utf8)."""
    parts = ["% needs \\usepackage{booktabs}\n", *(f"% {' '.join(note.split())}\n" for note in footnotes(table))]
    for section in table.sections:
        columns = table.columns_of(section)
        heads = ["Bits", "Method", *(_latex(column.title) for column in columns)]
        rows = [f"\n% {' '.join(title(section).split())}", f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}", "\\toprule"]
        rows += [f"{' & '.join(heads)} \\\\"]
        before = None
        for bits, row in lines(section):
            if bits != before:
                rows.append("\\midrule")
            label = _latex(row.label) + (f" ($n={row.seeds}$)" if row.seeds > 1 else "")
            cells = [_latex_cell(row.cells[column.key]) for column in columns]
            rows.append(f"{' & '.join([bits if bits != before else '', label, *cells])} \\\\")
            before = bits
        parts.append("\n".join([*rows, "\\bottomrule", "\\end{tabular}\n"]))
    return "".join(parts)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text).replace(r"E*\_warp", r"$E^*_{\mathrm{warp}}$")


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(cell.rank, text)


LONGEST_METHOD = len("efficientdm")


def print_tables(table: Table) -> None:
    """Print the table, of the costs only the size: the files have the others.

    Where the terminal is narrow, only the labels and headings are wrapped.
    """
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    for section in table.sections:
        columns = [column for column in table.columns_of(section) if column.better or column.key == "megabytes"]
        grid = Grid(title=Text(title(section)), title_justify="left")
        grid.add_column("bits", no_wrap=True)
        grid.add_column("method", overflow="fold", min_width=LONGEST_METHOD)
        for column in columns:
            grid.add_column(Text("\n".join(column.title.split())), justify="right", no_wrap=True)
        before = ""
        for bits, row in lines(section):
            if bits != before:
                grid.add_section()
            label = row.label + (f" (n = {row.seeds})" if row.seeds > 1 else "")
            marks = {1: "bold", 2: "underline"}  # Text: brackets in names are no markup.
            cells = (row.cells[column.key] for column in columns)
            texts = (Text(cell.text.replace(" ±", "\n±"), marks.get(cell.rank, "")) for cell in cells)
            grid.add_row(bits if bits != before else "", Text(label), *texts)
            before = bits
        console.print(grid)
    for note in footnotes(table)[1:]:
        console.print(note, markup=False, highlight=False)
