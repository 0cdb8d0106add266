"""``eval.py`` measures what ``train.py`` measured, and ready-made outputs as the papers do."""

import csv
import json
import shutil

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

import quantsr
from quantsr.data.degradations import to_float
from quantsr.data.files import read_image
from quantsr.data.layouts import DATA_SETS, Layout
from quantsr.deploy import openvino, runtimes
from quantsr.errors import UserError
from quantsr.evaluation import as_saved
from quantsr.run.evaluation import upscale_file
from tests.conftest import picture
from tests.data.folders import make
from tests.deploy.conftest import image_run, video_run  # noqa: F401
from tests.end_to_end.test_bad_input import assert_refused


@pytest.fixture(scope="module")
def data(image_folder) -> list[str]:
    """The validation data of the trained run, which had another seed."""
    return ["data=images", f"data.root={image_folder}", "data.crop=32"]


REST = ("fidelity_psnr", "images")  # what a run has on top is of its calibration and its artefact


def measured(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("which", ["artefact", "", "checkpoints/last.ckpt"], ids=["artefact", "run", "checkpoint"])
def test_gives_the_metrics_of_the_run(run, trained, data, tmp_path, which):
    folder, _ = trained
    result = run("eval.py", f"artefact='{folder / which}'", *data, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    expected = measured(folder)
    assert measured(tmp_path) == {key: expected[key] for key in ("bicubic", "teacher", "student", *REST)}
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    theirs = list(csv.DictReader((folder / "images.csv").open()))
    assert rows == theirs
    assert sorted(path.stem for path in (tmp_path / "images").iterdir()) == sorted(row["name"] for row in rows)
    with Image.open(next((tmp_path / "images").iterdir())) as image:
        assert image.size == (64, 64)
    for model in ("bicubic", "teacher", "student"):
        assert f"{expected[model]['psnr_y']:.2f}" in result.out
    assert str(tmp_path / "images.csv") in result.out


def test_the_figures_of_a_run_are_not_overwritten(run, trained, data):
    before = (trained[0] / "metrics.json").read_bytes()
    refused = run("eval.py", f"artefact={trained[0]}", *data, f"hydra.run.dir={trained[0]}")
    assert refused.code == 2 and f"{trained[0]} holds a finished run: give another hydra.run.dir" in refused.err
    assert (trained[0] / "metrics.json").read_bytes() == before


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


class TestBenchmarks:
    @pytest.mark.parametrize("layout", DATA_SETS["div2k_val"].layouts, ids=str)
    def test_any_layout_is_measured(self, run, trained, tmp_path, layout):
        root = make(tmp_path / "set", "div2k_val", layout, count=3)
        data = ["data=div2k_val", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}"]
        result = run("eval.py", f"artefact={trained[0]}", *data)
        assert result.code == 0, result.err
        metrics = measured(tmp_path / "run")
        assert metrics["images"] == 3 and metrics["student"]["psnr_y"] > 5 and metrics["fidelity_psnr"] > 5

    def test_low_quality_images_alone(self, run, trained, tmp_path):
        root = make(tmp_path / "set", "realsr", Layout("HR", "LR"), count=3)
        data = ["data=pairs", f"data.lq={root / 'LR'}", "data.gt=null", "data.validation_share=1"]
        result = run("eval.py", f"artefact={trained[0]}", *data, f"hydra.run.dir={tmp_path / 'run'}")
        assert result.code == 0, result.err
        metrics = measured(tmp_path / "run")
        assert metrics["images"] == 3 and metrics["student"] == {} and metrics["fidelity_psnr"] > 5
        assert list(metrics["absent"]) == ["psnr_y", "ssim"] and "absent   ssim: it compares" in result.out
        with Image.open(tmp_path / "run" / "images" / "Canon_001_LR4.png") as image:
            assert image.size == (64, 64)

    def test_ready_made_outputs(self, run, tmp_path):
        root = make(tmp_path / "set", "drealsr", Layout("test_HR", "test_LR"), count=3)
        data = [f"outputs={root / 'test_HR'}", "data=drealsr", f"data.root={root}"]
        result = run("eval.py", *data, f"hydra.run.dir={tmp_path / 'run'}")
        assert result.code == 0, result.err
        assert measured(tmp_path / "run")["outputs"]["ssim"] == pytest.approx(1)

    def test_another_folder_is_refused_with_the_one_to_give(self, run, trained, tmp_path):
        root = make(tmp_path / "set", "realsr", Layout("HR", "LR"))
        data = ["data=realsr", f"data.root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"]
        result = run("eval.py", f"artefact={trained[0]}", *data)
        assert result.code == 2 and result.err.count("\n") == 1
        assert f"No RealSR in {tmp_path}: looked for images in test_HR and test_LR" in result.err
        assert result.err.endswith(f"Give {root}.\n")


class TestMetricsByName:
    @pytest.fixture
    def outputs(self, image_folder, monkeypatch, tmp_path) -> list[str]:
        """Measure the small images as ready-made outputs; torch.hub's folder is empty."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        folders = [f"outputs={image_folder}", "data=pairs", f"data.lq={image_folder}", f"data.gt={image_folder}"]
        return [*folders, f"hydra.run.dir={tmp_path / 'run'}"]

    def test_what_is_missing_is_told_before_and_after_and_written(self, run, outputs, tmp_path):
        result = run("eval.py", *outputs, "metrics.names=[lpips,dover]")
        assert result.code == 0, result.err
        before, after = result.out.split("per image")[0].split("(8 images)")
        for text in ("metrics besides PSNR-Y and SSIM", "lower", "higher", "alexnet-owt-7be5be79.pth"):
            assert text in before
        assert "absent   lpips: no alexnet-owt-7be5be79.pth in " in after and "LPIPS ↓" in after
        assert list(measured(tmp_path / "run")["absent"]) == ["lpips", "dover"]

    def test_what_is_required_is_an_error_in_one_sentence_before_the_run(self, run, outputs, tmp_path):
        result = run("eval.py", *outputs, "metrics.require=[musiq]")
        assert result.code == 2 and result.err.count("\n") == 1
        assert "metrics.require: musiq cannot be measured: no musiq_koniq_ckpt-e95806b9.pth in " in result.err
        assert not (tmp_path / "run" / "metrics.json").exists()

    def test_before_a_calibration_too(self, run, micro, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        result = run("train.py", *micro, "method=minmax", "metrics.require=[fid]", f"hydra.run.dir={tmp_path / 'run'}")
        assert result.code == 2 and "metrics.require: fid cannot be measured" in result.err
        assert "minmax" not in result.out.lower()

    @pytest.mark.parametrize("given", ["metrics.names=[brisk]", "metrics.names=lpips", "metrics.weights_dir=/nowhere"])
    def test_bad_values(self, run, outputs, given):
        result = run("eval.py", *outputs, given, "metrics.require=[niqe]")
        assert result.code == 2 and result.err.count("\n") == 1 and given.split("=")[0] in result.err

    @pytest.mark.slow
    def test_niqe_of_ready_made_outputs(self, run, shared, tmp_path):
        """Without a download, from the parameters in BasicSR's file; 5.1746 is published."""
        root = shared / "realsr"
        folders = [f"outputs={root / 'OSEDiff'}", "data=pairs", f"data.lq={root / 'LR'}", f"data.gt={root / 'HR'}"]
        weights = f"metrics.weights_dir={shared / 'weights'}"
        result = run("eval.py", *folders, "metrics.names=[niqe]", weights, f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        assert measured(tmp_path)["outputs"]["niqe"] == pytest.approx(5.1746, abs=0.001)
        assert "5.17" in result.out and result.err == ""


class TestUpscale:
    """A single image: ``input=FILE``."""

    @pytest.fixture
    def photo(self, tmp_path):
        """26 x 14 pixels, half transparent, with a note to turn it by a quarter."""
        path, exif = tmp_path / "some photo.webp", Image.Exif()
        exif[0x0112] = 6
        image = picture(0, side=32).crop((0, 0, 26, 14)).convert("RGBA")
        image.putalpha(128)
        image.save(path, lossless=True, exact=True, exif=exif)
        return path

    @pytest.mark.parametrize("tile", [None, 32])
    def test_image(self, run, trained, photo, tmp_path, tile):
        options = [] if tile is None else [f"tile={tile}"]
        out = tmp_path / "out"
        result = run("eval.py", f"artefact={trained[0]}", f"input='{photo}'", *options, f"hydra.run.dir={out}")
        assert result.code == 0, result.err
        assert str(out / "images" / "some photo.png") in result.out
        saved = to_float(read_image(out / "images" / "some photo.png"))
        student = quantsr.load(trained[0])
        student.tile = tile or student.tile
        with torch.no_grad():
            expected = student(to_float(read_image(photo))[None])[0]
        assert saved.shape == (3, 4 * 26, 4 * 14)
        torch.testing.assert_close(saved, as_saved(expected), atol=1.01 / 255, rtol=0)

    def test_bad_input(self, run, trained, photo, tmp_path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        options = [f"artefact={trained[0]}", f"hydra.run.dir={tmp_path / 'out'}"]
        assert_refused(run("eval.py", *options, f"input={broken}"), str(broken), "not readable")
        assert_refused(run("eval.py", *options, "input=/nowhere.png"), "No image file at /nowhere.png")
        refused = run("eval.py", *options, f"input='{photo}'", "tile=30")
        assert_refused(refused, "tile takes a multiple of 4 output pixels, not 30")
        assert_refused(run("eval.py", *options, f"input='{photo}'", "tile=x"), "tile takes a whole number or null")

    def test_images_of_a_folder_go_through_one_by_one(self, image_run, tmp_path):  # noqa: F811
        """Of several sizes; one that cannot be read is left out."""
        (tmp_path / "in").mkdir()
        for side in (8, 9):
            picture(0, side=side).save(tmp_path / "in" / f"{side}.png")
        (tmp_path / "in" / "a.png").write_bytes(b"no image")
        assert upscale_file(options(image_run, tmp_path / "in", tmp_path / "run"), "cpu") == {"images": 2}
        assert sorted(path.name for path in (tmp_path / "run" / "images" / "in").iterdir()) == ["8.png", "9.png"]

    def test_by_the_runtime_that_is_ready(self, image_run, photo, tmp_path, monkeypatch):  # noqa: F811
        loaded, load = [], runtimes.load
        monkeypatch.setattr(runtimes, "load", lambda *given: loaded.append(load(*given)) or loaded[-1])
        openvino.export(shutil.copytree(image_run, tmp_path / "exported"))
        upscale_file(options(tmp_path / "exported", photo, tmp_path / "run"), "cpu")
        assert [name for name, _ in loaded] == ["openvino"]

    def test_a_clip_whose_teacher_is_not_here(self, video_run, frames, tmp_path):  # noqa: F811
        assert upscale_file(options(video_run, frames, tmp_path / "run"), "cpu") == {"frames": 4}
        assert len(list((tmp_path / "run" / "images" / "clip").iterdir())) == 4

    def test_a_frame_that_ends_early_is_found_first(self, video_run, frames, tmp_path):  # noqa: F811
        (frames / "3.png").write_bytes((frames / "3.png").read_bytes()[:-40])
        with pytest.raises(UserError, match=r"3\.png is not readable"):
            upscale_file(options(video_run, frames, tmp_path / "run"), "cpu")
        assert not (tmp_path / "run").exists()

    @pytest.fixture
    def frames(self, tmp_path):
        """Four frames of a clip."""
        (tmp_path / "clip").mkdir()
        for number in range(4):
            picture(number, side=8).save(tmp_path / "clip" / f"{number}.png")
        return tmp_path / "clip"


def options(run, source, folder) -> DictConfig:
    """What ``eval.py`` has of a command line that upscales."""
    return OmegaConf.create({"artefact": str(run), "input": str(source), "tile": None, "run_dir": str(folder)})
