"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table


def print_whole(table: Table) -> None:
    """Print a table without cutting its figures.

    On a narrow terminal headings are wrapped; in a file, which has no width, lines are as long as they come.
    """
    console, needed = Console(), Console(width=1000).measure(table)
    width = needed.minimum if console.is_terminal else needed.maximum
    Console(width=max(console.width, width)).print(table)
