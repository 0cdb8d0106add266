"""The notebooks run from first to last cell, and are committed with pictures and nothing else that a run leaves."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from omegaconf import OmegaConf

from notebooks.execute import clean, execute
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 600_000  # bytes
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.fixture
def copy(python, tmp_path, monkeypatch) -> Path:
    """What the notebooks need of the repository: they leave their runs in the copy."""
    for folder in ("conf", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "startup.py").write_text(f"import sys; sys.executable = {python!r}")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))  # Of kernels: for the commands in cells.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("QUANTSR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["01_quickstart", "02_inside_a_layer", "03_compare_runs"]


@pytest.mark.slow
@EVERY_NOTEBOOK
def test_runs_and_draws_what_is_committed(copy, path, image_folder):
    if path.stem == "03_compare_runs":  # It runs a sweep: here of a few small images.
        images = {"_target_": "quantsr.data.images.ImagesDataModule", "root": str(image_folder), "crop": 64}
        OmegaConf.save(images | {"batch_size": 2, "seed": "${seed}"}, copy / "conf" / "data" / "photos.yaml")
    ran = clean(execute(copy / "notebooks" / path.name))
    assert pictures(ran) >= 2
    if path.stem != "03_compare_runs":  # What that draws depends on the sweep.
        committed = nbformat.read(path, as_version=4)
        assert [len(cell.get("outputs", [])) for cell in ran.cells] == [
            len(cell.get("outputs", [])) for cell in committed.cells
        ]


@EVERY_NOTEBOOK
def test_is_committed_with_pictures_and_nothing_else(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert 2 <= pictures(notebook) <= 4
    assert notebook == clean(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert all(set(output.data) == {"image/png"} for output in cell.outputs)


@EVERY_NOTEBOOK
def test_is_small_enough_for_a_repository(path):
    assert path.stat().st_size < LARGEST


def test_cleaning_keeps_pictures_alone():
    def output(**data):
        return nbformat.v4.new_output("display_data", {key.replace("_", "/"): value for key, value in data.items()})

    cell = nbformat.v4.new_code_cell("1", execution_count=3, metadata={"execution": {"iopub.status.busy": "now"}})
    cell.outputs = [
        nbformat.v4.new_output("stream", text="words"),
        nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=3),
        output(image_png="AAAA", text_plain="<Figure>"),
    ]
    cleaned = clean(nbformat.v4.new_notebook(cells=[cell])).cells[0]
    assert (cleaned.execution_count, cleaned.metadata) == (None, {})
    assert [dict(kept.data) for kept in cleaned.outputs] == [{"image/png": "AAAA"}]


def test_a_cell_that_fails_is_an_error(tmp_path):
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)
