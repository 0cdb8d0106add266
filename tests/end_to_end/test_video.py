"""The commands on clips: what a run of QuantVSR leaves, what ``eval.py`` measures and upscales, what is refused."""

import csv
import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import quantsr
from quantsr.data.layouts import Layout
from quantsr.data.video import VideoFrames, iter_frames, write_video
from quantsr.evaluation import as_saved
from quantsr.teachers.files import load_teacher
from tests.conftest import picture
from tests.data.folders import make
from tests.end_to_end.test_bad_input import assert_refused


@pytest.fixture(scope="module")
def quantvsr(run, video_micro, tmp_path_factory):
    """A finished run of QuantVSR: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("quantvsr") / "run"
    result = run("train.py", *video_micro, f"hydra.run.dir={folder}")
    assert result.code == 0, result.err
    return folder, result


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A folder with two clips of five frames of 64 x 48 pixels: what a window sees that moves over a picture."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(2):
        (root / f"clip{number}").mkdir()
        for i in range(5):
            frame = picture(number, side=80).crop((2 * i, i, 2 * i + 64, i + 48))
            frame.save(root / f"clip{number}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    """A folder with five frames of 24 x 16 pixels."""
    folder = tmp_path_factory.mktemp("small") / "small"
    folder.mkdir()
    for i in range(5):
        picture(0, side=32).crop((i, i, i + 24, i + 16)).save(folder / f"{i}.png")
    return folder


def metrics_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def rows_of(path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


class TestTrain:
    def test_folder(self, quantvsr):
        folder, _ = quantvsr
        names = {path.name for path in folder.iterdir()}
        expected = "artefact checkpoints comparison.png config.yaml clips.csv frames.csv metrics.csv metrics.json"
        assert names >= {*expected.split(), "ranks.csv", "ranks.png"} and "images.csv" not in names
        assert not list(folder.rglob("*unfinished*"))
        for name in ("comparison.png", "ranks.png"):
            with Image.open(folder / name) as image:
                assert image.width > 4 * 32

    def test_metrics(self, quantvsr):
        folder, result = quantvsr
        metrics = metrics_of(folder)
        assert list(metrics) == [
            "bicubic",
            "teacher",
            "student",
            "fidelity_psnr",
            "gt",
            "clips",
            "absent",
            "cost",
            "bytes",
            "seconds",
        ]
        for model in ("bicubic", "teacher", "student"):
            assert set(metrics[model]) >= {"psnr_y", "ssim", "warping"}
            assert f"{metrics[model]['psnr_y']:.2f}" in result.out and f"{metrics[model]['warping']:.3f}" in result.out
        clips, frames = rows_of(folder / "clips.csv"), rows_of(folder / "frames.csv")
        assert len(clips) == metrics["clips"] and len(frames) == 4 * len(clips)
        mean = sum(float(row["student.warping"]) for row in clips) / len(clips)
        assert mean == pytest.approx(metrics["student"]["warping"])

    def test_terminal(self, quantvsr):
        folder, result = quantvsr
        lines = ["complexity 3, refinement 2, alignment 2", "0 attention products quantized at w4a4", "trajectories  6"]
        for text in (*lines, "E*_warp", "average rank", "refinement: done, 2 steps", str(folder / "artefact")):
            assert text in result.out
        assert result.err == ""

    def test_artefact_has_the_ranks_of_the_table(self, quantvsr):
        folder, _ = quantvsr
        ranks = {row["layer"]: int(row["rank"]) for row in rows_of(folder / "ranks.csv")}
        student = quantsr.load(folder)
        assert student.frames == 3 and len(set(ranks.values())) > 1
        assert all(student.model.get_submodule(name).L1.shape[1] == rank for name, rank in ranks.items())
        about = json.loads((folder / "artefact" / "config.json").read_text())
        assert (about["method"], about["bits"], about["data"]) == ("QuantVSR", "w4a4", "MotionDataModule")

    def test_the_same_run_again_uses_its_pairs_again_and_gives_the_same(self, quantvsr, run, video_micro, tmp_path):
        result = run("train.py", *video_micro, f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        assert "trajectories  " not in result.out
        files = [folder / "artefact" / "student.safetensors" for folder in (tmp_path, quantvsr[0])]
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_other_files_of_the_same_names_are_not_taken_for_those_of_the_pairs(self, run, video_micro, tmp_path):
        (tmp_path / "photos").mkdir()
        for number, side in enumerate((80, 96)):
            for photo in range(3):
                picture(10 * number + photo, side=side).save(tmp_path / "photos" / f"{photo}.png")
            options = [f"data.root={tmp_path / 'photos'}", f"hydra.run.dir={tmp_path / str(number)}"]
            result = run("train.py", *video_micro, *options)
            assert result.code == 0, result.err
            assert "trajectories  6" in result.out

    def test_configuration(self, quantvsr, video_teacher_file):
        cfg = OmegaConf.load(quantvsr[0] / "config.yaml")
        assert cfg.teacher.weights == str(video_teacher_file) and cfg.method.largest_rank == 8


class TestEval:
    @pytest.mark.parametrize("which", ["", "checkpoints/last.ckpt"], ids=["artefact", "checkpoint"])
    def test_gives_the_metrics_of_the_run(self, quantvsr, run, motion, tmp_path, which):
        folder, _ = quantvsr
        result = run("eval.py", f"artefact='{folder / which}'", *motion, f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        expected = metrics_of(folder)
        for of_the_run in ("bytes", "cost", "seconds"):
            del expected[of_the_run]
        assert metrics_of(tmp_path) == expected
        names = [row["name"] for row in rows_of(tmp_path / "clips.csv")]
        written = {path.name for path in (tmp_path / "images").iterdir()}
        assert written == {*names, *(f"{name}.mp4" for name in names)}
        assert str(tmp_path / "clips.csv") in result.out

    def test_clean_clips_are_degraded_and_their_motion_is_estimated(self, quantvsr, run, clip_folder, tmp_path):
        data = ["data=clips", f"data.gt={clip_folder}", "data.validation_share=1", "data.frames=3"]
        result = run("eval.py", f"artefact={quantvsr[0]}", *data, f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        metrics = metrics_of(tmp_path)
        assert metrics["clips"] == 2 and metrics["gt"]["warping"] > 0
        assert len(rows_of(tmp_path / "frames.csv")) == 10

    @pytest.mark.parametrize("layout", [Layout(lq="."), Layout(lq="LQ")], ids=str)
    def test_clips_without_ground_truth(self, quantvsr, run, tmp_path, layout):
        root = make(tmp_path / "VideoLQ", "videolq", layout, count=2, frames=5)
        data = ["data=videolq", f"data.root={root}", "data.frames=3"]
        result = run("eval.py", f"artefact={quantvsr[0]}", *data, f"hydra.run.dir={tmp_path / 'run'}")
        assert result.code == 0, result.err
        metrics = metrics_of(tmp_path / "run")
        assert metrics["clips"] == 2 and metrics["fidelity_psnr"] > 0 and "gt" not in metrics
        assert all(set(metrics[model]) >= {"warping"} for model in ("bicubic", "teacher", "student"))
        assert set(metrics["absent"]) >= {"psnr_y", "ssim"} and "psnr_y" not in metrics["student"]
        assert "the data has none" in result.out and "no ground truth" in result.out
        assert len(list((tmp_path / "run" / "images" / "clip0").iterdir())) == 5
        with Image.open(tmp_path / "run" / "images" / "clip0" / "00000.png") as image:
            assert image.size == (64, 64)
        assert (tmp_path / "run" / "comparison.png").is_file()

    def test_what_compares_with_ground_truth_cannot_be_required_without(self, quantvsr, run, tmp_path):
        root = make(tmp_path / "VideoLQ", "videolq", Layout(lq="."))
        data = ["data=videolq", f"data.root={root}", "data.frames=3", "metrics.require=[lpips]"]
        result = run("eval.py", f"artefact={quantvsr[0]}", *data, f"hydra.run.dir={tmp_path / 'run'}")
        assert_refused(result, "lpips cannot be measured: it compares with the ground truth, and the data has none")

    def test_an_image_student_takes_clips_frame_by_frame(self, trained, run, clip_folder, tmp_path):
        data = ["data=clips", f"data.gt={clip_folder}", "data.validation_share=1"]
        result = run("eval.py", f"artefact={trained[0]}", *data, f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        assert metrics_of(tmp_path)["clips"] == 2


class TestUpscale:
    def test_a_folder_of_frames(self, quantvsr, run, small_clip, tmp_path):
        """As the student does it in segments that share a frame; the frames are rounded, not cut, to 8 bits."""
        result = run("eval.py", f"artefact={quantvsr[0]}", f"input={small_clip}", f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        frames = torch.stack(list(iter_frames(tmp_path / "images" / "small")))
        assert frames.shape == (5, 3, 4 * 16, 4 * 24)
        assert len(VideoFrames(tmp_path / "images" / "small.mp4")) == 5
        assert str(tmp_path / "images" / "small.mp4") in result.out
        student = quantsr.load(quantvsr[0])
        with torch.no_grad():
            first = student(torch.stack(list(iter_frames(small_clip)))[None, :3])[0]
        torch.testing.assert_close(frames[:2], as_saved(first)[:2], atol=1.01 / 255, rtol=0)
        assert (frames[:2] - first[:2]).mean().abs() < 1e-4

    def test_a_video_keeps_its_length_and_its_rate(self, quantvsr, run, small_clip, tmp_path):
        source = tmp_path / "some clip.mp4"
        write_video(source, iter_frames(small_clip), 15)
        out = tmp_path / "out"
        result = run("eval.py", f"artefact={quantvsr[0]}", f"input='{source}'", f"hydra.run.dir={out}")
        assert result.code == 0, result.err
        assert len(list((out / "images" / "some clip").iterdir())) == 5
        video = VideoFrames(out / "images" / "some clip.mp4")
        assert (len(video), video.fps, video.size) == (5, 15, (64, 96))

    def test_by_an_image_student(self, trained, run, small_clip, tmp_path):
        result = run("eval.py", f"artefact={trained[0]}", f"input={small_clip}", f"hydra.run.dir={tmp_path}")
        assert result.code == 0, result.err
        assert len(list((tmp_path / "images" / "small").iterdir())) == 5

    def test_bad_input(self, quantvsr, run, tmp_path):
        folder = f"hydra.run.dir={tmp_path}"
        assert_refused(run("eval.py", "input=/nowhere", folder), "give artefact=FOLDER")
        assert_refused(run("eval.py", f"artefact={quantvsr[0]}", "input=/nowhere", folder), "No video file", "/nowhere")


class TestBadInput:
    def test_image_teacher_with_clips(self, run, micro, motion, tmp_path):
        options = [option for option in micro if not option.startswith("data")]
        result = run("train.py", *options, "method=minmax", *motion, f"hydra.run.dir={tmp_path}")
        assert_refused(result, "the teacher takes single images, the data gives segments of 3 frames", "data=photos")

    def test_video_teacher_with_images(self, run, video_micro, tmp_path):
        options = [option for option in video_micro if not option.startswith("data")]
        result = run("train.py", *options, "data=photos", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "the teacher takes segments of 3 frames, the data gives single images", "data=motion")

    def test_a_teacher_cannot_train_without_ground_truth(self, run, video_micro, tmp_path):
        root = make(tmp_path / "VideoLQ", "videolq", Layout(lq="."), count=4, frames=3)
        options = [option for option in video_micro if not option.startswith(("data", "method"))]
        data = ["data=clips", "data.gt=null", f"data.lq={root}", "data.frames=3", "data.crop=32"]
        result = run("train.py", *options, "method=teacher", *data, f"hydra.run.dir={tmp_path / 'run'}")
        assert_refused(result, "TeacherTraining trains against the ground truth, and the data has none: give data.gt")

    def test_segments_of_another_length(self, run, video_micro, tmp_path):
        result = run("train.py", *video_micro, "data.frames=5", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "segments of 3 frames", "segments of 5 frames", "data=motion data.frames=3")

    def test_video_student_with_images(self, quantvsr, run, tmp_path):
        result = run("eval.py", f"artefact={quantvsr[0]}", "data=photos", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "takes segments of 3 frames", "gives single images")

    def test_flow_without_its_weights_before_anything_starts(self, run, video_micro, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
        options = ["flow.name=raft_small", "teacher.weights=/nowhere"]
        result = run("train.py", *video_micro, *options, f"hydra.run.dir={tmp_path / 'run'}")
        assert_refused(result, "raft_small needs its weights", "dis, which needs none")
        assert not (tmp_path / "run" / "config.yaml").exists()

    def test_options_of_the_method(self, run, video_micro, tmp_path):
        result = run("train.py", *video_micro, "method.smallest_rank=9", f"hydra.run.dir={tmp_path}")
        assert_refused(result, "ranks go from a smallest of 1 or more to a largest not below it, not from 9 to 8")

    def test_timestep_retraining(self, run, video_micro, motion, tmp_path):
        options = [option for option in video_micro if not option.startswith(("method", "data"))]
        result = run("train.py", *options, "method=trq", *motion, f"hydra.run.dir={tmp_path}")
        assert_refused(result, "method=trq moves the timestep of one-step teachers")


def test_a_video_teacher_is_trained_and_its_file_loads(run, motion, tmp_path):
    small = [
        "teacher=mgldvsr_small",
        "teacher.frames=3",
        "teacher.steps=2",
        "teacher.vae.channel_multipliers=[1,1,1]",
        "teacher.unet.channel_multipliers=[1,1]",
        "teacher.structure.channel_multipliers=[1,1]",
    ]
    method = ["method=teacher", "method.autoencoder_steps=2", "method.steps=2"]
    options = [*method, *small, *motion, "logger=csv", "trainer.accelerator=cpu", "method.feature=0.1"]
    result = run("train.py", *options, f"hydra.run.dir={tmp_path}")
    assert result.code == 0, result.err
    assert "autoencoder 2, teacher 2" in result.out and result.err == ""
    metrics = metrics_of(tmp_path)
    assert list(metrics) == ["bicubic", "teacher", "gt", "clips", "absent", "seconds"]
    teacher = load_teacher(tmp_path / "teacher.safetensors")
    assert (teacher.kind, teacher.frames, teacher.steps) == ("mgldvsr", 3, 2)
    with torch.no_grad():
        assert teacher(torch.rand(1, 3, 3, 8, 8)).shape == (1, 3, 3, 32, 32)
