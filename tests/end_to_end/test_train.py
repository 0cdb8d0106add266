"""A run of ``train.py`` leaves what it says; sweeps make a folder a job and one table."""

import csv
import json

import pytest
from omegaconf import OmegaConf
from PIL import Image

import quantsr
from quantsr.data.layouts import Layout
from quantsr.report.__main__ import main as compare_runs
from tests.data.folders import make
from tests.end_to_end.conftest import MICRO_STEPS


def test_folder_of_a_run(trained):
    folder, _ = trained
    names = {path.name for path in folder.iterdir()}
    expected = "artefact checkpoints comparison.png config.yaml images.csv metrics.csv metrics.json .hydra"
    assert names >= set(expected.split())
    assert not [path for path in folder.rglob("*unfinished*")]
    assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_low_quality_images_alone_calibrate_a_student(run, micro, tmp_path, capsys):
    lq = make(tmp_path, "realsr", Layout("HR", "LR"), count=5) / "LR"
    options = [option for option in micro if option != "data=images" and not option.startswith("data.root")]
    data = ["data=pairs", f"data.lq={lq}", "data.gt=null"]
    result = run("train.py", *options, *data, "method=minmax", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["student"] == {} and metrics["fidelity_psnr"] > 5 and metrics["images"] == 1
    assert compare_runs([str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "minmax" in shown and f"{metrics['fidelity_psnr']:.2f}" in shown


def test_offload_changes_nothing_that_a_run_leaves(run, micro, tmp_path):
    folders = {offload: tmp_path / offload for offload in ("false", "true")}
    for offload, folder in folders.items():
        result = run("train.py", *micro, *MICRO_STEPS["minmax"], f"offload={offload}", f"hydra.run.dir={folder}")
        assert result.code == 0, result.err
    plain, offloaded = folders.values()
    for file in ("artefact/student.safetensors", "images.csv", "comparison.png"):
        assert (offloaded / file).read_bytes() == (plain / file).read_bytes(), file


def test_metrics(trained):
    folder, result = trained
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["bicubic", "teacher", "student", "fidelity_psnr", "images", "cost", "bytes", "seconds"]
    for model in ("bicubic", "teacher", "student"):
        assert set(metrics[model]) == {"psnr_y", "ssim"}
        assert f"{metrics[model]['psnr_y']:.2f}" in result.out and f"{metrics[model]['ssim']:.4f}" in result.out
    assert f"{metrics['fidelity_psnr']:.2f}" in result.out
    assert metrics["images"] == 2
    size = (folder / "artefact" / "student.safetensors").stat().st_size
    assert metrics["bytes"]["artefact"] == size
    assert f"{size / 1e6:.2f} MB packed" in result.out
    rows = list(csv.DictReader((folder / "images.csv").open()))
    mean = sum(float(row["student.psnr_y"]) for row in rows) / len(rows)
    assert mean == pytest.approx(metrics["student"]["psnr_y"])


def test_terminal(trained):
    folder, result = trained
    for text in ("smoothing 2, ranges 2, encoder.transforms 2", "at w6a6", "decoder.bounds: done, 2 steps", "loss 0."):
        assert text in result.out
    for name in ("artefact", "comparison.png", "metrics.json"):
        assert str(folder / name) in result.out
    assert result.err == ""


def test_losses_are_logged(trained):
    folder, _ = trained
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert any(row.get("loss") for row in rows)
    assert any(row.get("student/psnr_y") for row in rows)


def test_configuration_is_whole_and_says_what_was_given(trained, teacher_file):
    cfg = OmegaConf.load(trained[0] / "config.yaml")
    assert cfg.seed == 3 and cfg.method.steps == 2 and cfg.bits.weight == 6
    assert cfg.teacher.weights == str(teacher_file)
    assert "${" not in (trained[0] / "config.yaml").read_text()


def test_comparison_shows_all_versions(trained):
    with Image.open(trained[0] / "comparison.png") as sheet:
        assert sheet.width > 5 * 64


def test_artefact_says_how_it_was_made(trained):
    config = json.loads((trained[0] / "artefact" / "config.json").read_text())
    assert (config["method"], config["bits"], config["data"]) == ("PassionSR", "w6a6", "ImagesDataModule")
    assert config["config"]["seed"] == 3
    assert "PSNR" in (trained[0] / "artefact" / "README.md").read_text()
    assert quantsr.load(trained[0]).scale == 4


def test_the_same_seed_gives_the_same_result(trained, run, micro, tmp_path):
    options = [*MICRO_STEPS["passionsr"], "bits=w6a6", "seed=3", f"hydra.run.dir={tmp_path}"]
    assert run("train.py", *micro, *options).code == 0
    ours, theirs = ((f / "artefact" / "student.safetensors").read_bytes() for f in (tmp_path, trained[0]))
    assert ours == theirs


def test_qartsr_is_the_default_and_its_artefact_measures_as_the_run_did(run, micro, image_folder, tmp_path):
    """Its 16-bit branch is in 16 bits in both."""
    steps = ["method.module_steps=1", "method.extended_steps=1"]
    result = run("train.py", *micro, *steps, f"hydra.run.dir={tmp_path / 'run'}")
    assert result.code == 0, result.err
    assert "perceptual distance in extended training: features of the teacher's encoder" in result.out
    assert json.loads((tmp_path / "run" / "artefact" / "config.json").read_text())["method"] == "QArtSR"
    data = ["data=images", f"data.root={image_folder}", "data.crop=32"]
    result = run("eval.py", f"artefact={tmp_path / 'run'}", *data, f"hydra.run.dir={tmp_path / 'eval'}")
    assert result.code == 0, result.err
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("eval", "run"))
    assert ours == {key: value for key, value in theirs.items() if key not in ("bytes", "cost", "seconds")}


def test_a_teacher_is_trained_and_used(run, micro, tmp_path):
    tiny = [option for option in micro if not option.startswith(("teacher", "method"))]
    small = [
        "teacher=one_step",
        "teacher.vae.block_out_channels=[8,8,8]",
        "teacher.vae.norm_num_groups=4",
        "teacher.unet.block_out_channels=[8,16]",
        "teacher.unet.norm_num_groups=4",
    ]
    result = run("train.py", *tiny, "method=teacher", "method.steps=3", *small, f"hydra.run.dir={tmp_path / 't'}")
    assert result.code == 0, result.err
    weights = tmp_path / "t" / "teacher.safetensors"
    metrics = json.loads((tmp_path / "t" / "metrics.json").read_text())
    assert list(metrics) == ["bicubic", "teacher", "images", "seconds"]
    options = ["method=minmax", "method.observation_steps=1", f"teacher.weights={weights}"]
    assert run("train.py", *tiny, *options, f"hydra.run.dir={tmp_path / 's'}").code == 0


@pytest.mark.slow
def test_a_sweep_makes_a_folder_a_job_and_one_table_and_goes_on_after_a_failure(run_alone, micro, tmp_path):
    sweep = tmp_path / "sweep"
    result = run_alone("train.py", "-m", *micro, "method=minmax", "bits.weight=9,8", f"hydra.sweep.dir={sweep}")
    jobs = ["0_minmax_w9a4_tiny_image", "1_minmax_w8a4_tiny_image"]
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == jobs
    assert [(sweep / job / "metrics.json").is_file() for job in jobs] == [False, True]
    table = list(csv.DictReader((sweep / "table.csv").open()))
    assert [(row["bits"], row["method"]) for row in table][-1] == ("w8a4", "minmax")
    assert "| w8a4 | minmax |" in (sweep / "table.md").read_text()
    assert all(str(sweep / name) in result.out for name in ("table.csv", "table.md", "table.tex", "report.html"))
    assert f"{jobs[0]} (minmax w9a4 seed=0): failed" in (sweep / "report.html").read_text()
    assert result.out.count(f"metrics  {sweep / jobs[1]}") == 1
    assert result.code == 2
    assert "bits.weight must be a whole number from 2 to 8, not 9" in result.err
    assert result.err.splitlines()[-1] == f"error: 1 of 2 jobs failed: {jobs[0]} (minmax w9a4 seed=0)"
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_a_sweep_over_any_keys_of_an_experiment(run_alone, micro, tmp_path):
    options = [option for option in micro if not option.startswith("method")]
    # What is given on the command line counts more than what an experiment says.
    options += ["experiment=tiny_image", "teacher=tiny_image", "trainer.precision=32-true"]
    options += ["data.pattern=*", "data.validation_pattern=null", "method.autoencoder_steps=0"]
    sweep = tmp_path / "sweep"
    result = run_alone("train.py", "-m", *options, "method.steps=1", "method.lr=0.01,0.02", f"hydra.sweep.dir={sweep}")
    assert result.code == 0, result.err
    assert "teacher lr=0.01" in result.out and "teacher lr=0.02" in result.out
    table = list(csv.DictReader((sweep / "table.csv").open()))
    assert [row["method.lr"] for row in table] == ["", "0.01", "0.02"]  # The first is bicubic.
