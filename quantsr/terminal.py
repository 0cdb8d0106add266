"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table


def wide_console(*tables: Table) -> Console:
    """A console that cuts no figure of the tables.

    On a narrow terminal headings are wrapped; in a file, which has no width, lines are as long as they come.
    """
    console, measuring = Console(), Console(width=1000)
    needed = [measuring.measure(table) for table in tables]
    widths = [table.minimum if console.is_terminal else table.maximum for table in needed]
    return Console(width=max(console.width, *widths))


def print_whole(table: Table) -> None:
    """Print a table without cutting its figures."""
    wide_console(table).print(table)
