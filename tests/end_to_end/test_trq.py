"""``method=trq`` leaves its curve and a teacher at the chosen timestep, which other methods take."""

import csv
import json

import pytest
from PIL import Image
from safetensors.torch import load_file

from quantsr.teachers.files import load_teacher

TRQ = ["method=trq", "method.steps=2", "method.timesteps=[199,499,799]"]


@pytest.fixture(scope="module")
def retrained(run, micro, tmp_path_factory):
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trq") / "run"
    result = run("train.py", *micro, *TRQ, f"hydra.run.dir={folder}")
    assert result.code == 0, result.err
    return folder, result


def test_a_run_leaves_the_curve_and_a_retimed_teacher(retrained):
    folder, result = retrained
    rows = list(csv.DictReader((folder / "timesteps.csv").open()))
    assert [row["timestep"] for row in rows] == ["199", "499", "799"]
    (chosen,) = (int(row["timestep"]) for row in rows if row["chosen"] == "1")
    assert load_teacher(folder / "teacher.safetensors").timestep == chosen
    assert f"timestep {chosen} instead of 499: " in result.out and "needed epsilon RMS" in result.out
    assert result.err == ""
    with Image.open(folder / "timesteps.png") as picture:
        assert min(picture.size) > 400
    assert list(json.loads((folder / "metrics.json").read_text())) == [
        "bicubic",
        "before",
        "teacher",
        "images",
        "seconds",
    ]
    assert "before" in result.out


def test_the_teacher_is_quantized_by_another_method(retrained, run, micro, tmp_path):
    weights = retrained[0] / "teacher.safetensors"
    options = [option for option in micro if not option.startswith("teacher")]
    result = run("train.py", *options, "method=minmax", f"teacher.weights={weights}", f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, retrained[0]))
    # The file holds 16 bits.
    assert ours["teacher"]["psnr_y"] == pytest.approx(theirs["teacher"]["psnr_y"], abs=0.05)


def test_without_steps_the_teacher_is_only_retimed(run, micro, tmp_path, teacher_file):
    options = ["method=trq", "method.steps=0", "method.timesteps=[199,499]", "method.timestep=199"]
    result = run("train.py", *micro, *options, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    assert load_teacher(tmp_path / "teacher.safetensors").timestep == 199
    ours, theirs = load_file(tmp_path / "teacher.safetensors"), load_file(teacher_file)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_bad_candidates_are_refused_in_one_sentence(run, micro, tmp_path):
    result = run("train.py", *micro, "method=trq", "method.timesteps=[499]", f"hydra.run.dir={tmp_path}")
    assert result.code == 2
    assert result.err == (
        "error: method.timesteps takes two or more whole numbers from 0 to 999 in rising order, not [499]\n"
    )


@pytest.mark.slow
def test_two_devices_measure_as_one(retrained, run_alone, micro, tmp_path):
    result = run_alone("train.py", *micro, *TRQ, "trainer.devices=2", f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    assert result.out.count(" instead of 499: ") == 1
    ours, theirs = (list(csv.DictReader((f / "timesteps.csv").open())) for f in (tmp_path, retrained[0]))
    for one, two in zip(ours, theirs, strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in two.items()}, rel=1e-3)
