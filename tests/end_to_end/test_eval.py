"""``eval.py`` measures what ``train.py`` measured, and ready-made outputs as the papers do."""

import csv
import json
import shutil

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def data(image_folder) -> list[str]:
    """The validation data of the trained run."""
    return ["data=images", f"data.root={image_folder}", "data.crop=32", "seed=3"]


def measured(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("which", ["artefact", "", "checkpoints/last.ckpt"], ids=["artefact", "run", "checkpoint"])
def test_gives_the_metrics_of_the_run(run, trained, data, tmp_path, which):
    folder, _ = trained
    result = run("eval.py", f"artefact='{folder / which}'", *data, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    expected = measured(folder)
    del expected["bytes"]
    assert measured(tmp_path) == expected
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    theirs = list(csv.DictReader((folder / "images.csv").open()))
    assert rows == theirs
    assert sorted(path.stem for path in (tmp_path / "images").iterdir()) == sorted(row["name"] for row in rows)
    with Image.open(next((tmp_path / "images").iterdir())) as image:
        assert image.size == (64, 64)
    for model in ("bicubic", "teacher", "student"):
        assert f"{expected[model]['psnr_y']:.2f}" in result.out
    assert str(tmp_path / "images.csv") in result.out


def test_other_data_gives_other_metrics(run, trained, data, tmp_path):
    result = run("eval.py", f"artefact={trained[0]}", *data, "data.validation_share=1", f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    assert measured(tmp_path)["images"] == 8


def test_an_artefact_works_where_it_was_moved_to(run, trained, data, tmp_path):
    shutil.copytree(trained[0] / "artefact", tmp_path / "moved")
    result = run("eval.py", f"artefact={tmp_path / 'moved'}", *data, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    assert measured(tmp_path / "run")["student"] == measured(trained[0])["student"]


def test_ready_made_outputs(run, image_folder, tmp_path):
    folders = [f"outputs={image_folder}", "data=pairs", f"data.lq={image_folder}", f"data.gt={image_folder}"]
    result = run("eval.py", *folders, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    summary = measured(tmp_path)
    assert summary["images"] == 8 and summary["outputs"]["ssim"] == pytest.approx(1)


@pytest.mark.slow
def test_published_figures_of_osediff_on_realsr(run, shared, tmp_path):
    root = shared / "realsr"
    folders = [f"outputs={root / 'OSEDiff'}", "data=pairs", f"data.lq={root / 'LR'}", f"data.gt={root / 'HR'}"]
    result = run("eval.py", *folders, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    summary = measured(tmp_path)["outputs"]
    assert round(summary["psnr_y"], 4) == 25.3243
    assert round(summary["ssim"], 4) == 0.7520
    assert measured(tmp_path)["images"] == 50
