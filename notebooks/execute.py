"""Run notebooks and keep of their output the pictures alone: ``python notebooks/execute.py [NOTEBOOK ...]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
TIMEOUT = 3600  # seconds a cell may take


def execute(path: Path) -> NotebookNode:
    """The notebook with the outputs of a run in its own folder, with this interpreter.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    return NotebookClient(notebook, timeout=TIMEOUT, kernel_name=KERNEL["name"], resources=folder).execute()


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed: pictures, and nothing else that a run leaves."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [picture for output in cell.outputs if (picture := _picture(output))]
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def _picture(output: NotebookNode) -> NotebookNode | None:
    image = output.get("data", {}).get("image/png")
    return nbformat.v4.new_output("display_data", {"image/png": image}) if image else None


def main(arguments: Sequence[str]) -> None:
    """Run the notebooks given, or all, and write them back."""
    for path in map(Path, arguments or sorted(HERE.glob("*.ipynb"))):
        nbformat.write(clean(execute(path)), path)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
