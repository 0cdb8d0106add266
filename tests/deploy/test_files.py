"""A pipeline from files to files."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import quantsr
from quantsr.data.files import read_image
from quantsr.data.video import VideoFrames, iter_frames, open_frames, write_video
from quantsr.deploy.files import upscale_clip
from quantsr.deploy.saving import save_image
from quantsr.errors import UserError
from quantsr.evaluation import as_saved
from tests.conftest import picture


@pytest.fixture
def pipe(image_run):
    return quantsr.load(image_run, device="cpu")


@pytest.fixture
def video_pipe(video_run):
    return quantsr.load(video_run, device="cpu")


@pytest.fixture
def photo(tmp_path) -> Path:
    picture(0, side=8).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images of several formats and sizes, a text, a subfolder."""
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.JPG", "c.webp", "below/d.png"]):
        picture(number, side=8 + number).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def frames(tmp_path) -> Path:
    """Five frames of a clip."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(5):
        picture(number, side=8).save(folder / f"f{number}.png")
    return folder


@pytest.fixture
def video(frames, tmp_path) -> Path:
    """The same as a video of 15 frames a second."""
    write_video(tmp_path / "some clip.mp4", iter_frames(frames), 15)
    return tmp_path / "some clip.mp4"


@pytest.fixture
def no_work(monkeypatch):
    """What is refused is refused before it."""

    def fail(*_):
        raise AssertionError("a model was called")

    monkeypatch.setattr("quantsr.teachers.one_step.OneStepTeacher.forward", fail)
    monkeypatch.setattr("quantsr.teachers.mgldvsr.MGLDVSRTeacher.forward", fail)


class TestImage:
    @pytest.mark.parametrize("output", ["large.png", "new/large.png", "new"])
    def test_output_is_a_file_or_a_folder(self, pipe, photo, tmp_path, output):
        expected = tmp_path / output if output.endswith(".png") else tmp_path / output / "photo.png"
        assert pipe(photo, output=tmp_path / output) == expected
        assert np.array_equal(Image.open(expected), pipe(photo))

    @pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "webp", "jpg"])
    def test_the_ending_says_the_format(self, pipe, photo, tmp_path, ending):
        written = pipe(photo, output=str(tmp_path / f"large.{ending}"))
        difference = np.abs(np.array(Image.open(written), float) - np.array(pipe(photo), float))
        assert difference.max() == 0 if ending != "jpg" else 0 < difference.mean() < 4

    def test_refused(self, pipe, photo, tmp_path):
        with pytest.raises(UserError, match=r"There is no image, folder or video at .*nowhere\.png"):
            pipe(tmp_path / "nowhere.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        with pytest.raises(UserError, match=r"broken\.png is not readable"):
            pipe(tmp_path / "broken.png", output=tmp_path / "large.png")
        with pytest.raises(UserError, match="is the input itself"):
            pipe(photo, output=photo)
        with pytest.raises(UserError, match="is where the input is"):
            pipe(photo, output=photo.parent)
        with pytest.raises(UserError, match=r"ends in none of \.png"):
            pipe(photo, output=tmp_path / "large.gif")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "photo.png"]

    def test_where_nothing_can_be_written(self, pipe, photo, tmp_path, no_work):
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(UserError, match=r"folder\.png is a folder"):
            pipe(photo, output=tmp_path / "folder.png")
        (tmp_path / "file").write_text("mine")
        with pytest.raises(UserError, match=r"nothing can be written into a folder .*file"):
            pipe(photo, output=tmp_path / "file" / "large.png")
        with pytest.raises(UserError, match="nothing can be written into a folder /proc"):
            pipe(photo, output="/proc/large.png")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png", "photo.png"]

    @pytest.mark.parametrize(("ending", "side"), [("webp", 16383), ("jpg", 65500)])
    def test_results_that_a_format_does_not_hold(self, pipe, tmp_path, no_work, ending, side):
        Image.new("RGB", (side // 4 + 1, 1)).save(tmp_path / "wide.png")
        size = f"{4 * (side // 4 + 1)}x4"
        with pytest.raises(
            UserError, match=rf"wide\.png is of {size} pixels once upscaled, and \.{ending} holds {side}"
        ):
            pipe(tmp_path / "wide.png", output=tmp_path / f"large.{ending}")

    def test_a_model_of_clips_takes_none(self, video_pipe, photo):
        with pytest.raises(UserError, match="give it a clip, not an image"):
            video_pipe(photo)


class TestFolder:
    def test_files_of_the_same_names(self, pipe, folder, tmp_path):
        written = pipe(folder, output=tmp_path / "out")
        assert [path.name for path in written] == ["a.JPG", "b.png", "c.webp"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.JPG", "b.png", "c.webp"]
        for path in written:
            with Image.open(path) as large, Image.open(folder / path.name) as small:
                assert large.size == (4 * small.width, 4 * small.height) and large.format == small.format
        assert np.array_equal(Image.open(tmp_path / "out" / "b.png"), pipe(folder / "b.png"))

    def test_unreadable_files_are_left_out_and_named_at_the_end(self, pipe, folder, tmp_path, caplog):
        (folder / "broken.png").write_bytes(b"no image")
        with caplog.at_level(logging.WARNING):
            written = pipe(folder, output=tmp_path / "out")
        assert len(written) == 3 and not (tmp_path / "out" / "broken.png").exists()
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["skipped broken.png"]

    def test_results_that_a_format_does_not_hold_are_left_out_too(self, pipe, folder, tmp_path, caplog):
        Image.new("RGB", (16384 // 4, 1)).save(folder / "b.webp")
        with caplog.at_level(logging.WARNING):
            written = pipe(folder, output=tmp_path / "out")
        assert [path.name for path in written] == ["a.JPG", "b.png", "c.webp"]
        assert "skipped b.webp: of 16384x4 pixels once upscaled" in caplog.text

    def test_refused_before_any_work(self, pipe, folder, tmp_path, no_work):
        (tmp_path / "out" / "c.webp").mkdir(parents=True)
        with pytest.raises(UserError, match=r"c\.webp is a folder, and a result would have that name"):
            pipe(folder, output=tmp_path / "out")
        for name in ("large.mp4", "large.png"):
            with pytest.raises(UserError, match="is named like a file, and there are several results: give a folder"):
                pipe(folder, output=tmp_path / name)
        with pytest.raises(UserError, match="nothing can be written into a folder /proc"):
            pipe(folder, output="/proc/large")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]

    def test_refused(self, pipe, folder, tmp_path):
        with pytest.raises(UserError, match=r"say where the results of .*in go: output=FOLDER"):
            pipe(folder)
        with pytest.raises(UserError, match="is where the input is"):
            pipe(folder, output=folder)
        with pytest.raises(UserError, match="is a file: give a folder"):
            pipe(folder, output=folder / "b.png")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="No image in"):
            pipe(tmp_path / "empty", output=tmp_path / "out")
        (tmp_path / "empty" / "broken.png").write_bytes(b"no image")
        with pytest.raises(UserError, match=r"None of the 1 images in .*empty can be used: broken\.png is not"):
            pipe(tmp_path / "empty", output=tmp_path / "out")


class TestClip:
    def test_frames_become_frames_of_the_same_names(self, video_pipe, frames, tmp_path):
        written = video_pipe(frames, output=tmp_path / "out")
        assert [path.name for path in written] == [f"f{number}.png" for number in range(5)]
        clip = torch.stack(list(iter_frames(frames)))
        expected = as_saved(video_pipe(clip[None])[0])
        torch.testing.assert_close(torch.stack(list(iter_frames(tmp_path / "out"))), expected, atol=1.01 / 255, rtol=0)

    def test_or_a_video(self, video_pipe, frames, tmp_path):
        assert video_pipe(frames, output=tmp_path / "new" / "large.mp4") == tmp_path / "new" / "large.mp4"
        assert (len(made := VideoFrames(tmp_path / "new" / "large.mp4")), made.size) == (5, (32, 32))

    @pytest.mark.parametrize("which", ["video_pipe", "pipe"], ids=["model of clips", "model of images"])
    def test_a_video_becomes_a_video_of_its_length_and_rate(self, which, video, tmp_path, request):
        written = request.getfixturevalue(which)(video, output=tmp_path / "out")
        assert written == tmp_path / "out" / "some clip.mp4"
        made = VideoFrames(written)
        assert (len(made), made.fps, made.size) == (5, 15, (32, 32))
        assert [path.name for path in written.parent.iterdir()] == ["some clip.mp4"]

    def test_refused(self, video_pipe, frames, video, tmp_path):
        with pytest.raises(UserError, match=r"output=NAME\.mp4 for a clip"):
            video_pipe(video)
        with pytest.raises(UserError, match="is the input itself"):
            video_pipe(video, output=video)
        with pytest.raises(UserError, match=r"ends in none of \.mp4"):
            video_pipe(video, output=tmp_path / "large.avi")
        (tmp_path / "text.mp4").write_text("no video")
        with pytest.raises(UserError, match=r"text\.mp4 is not readable as a video"):
            video_pipe(tmp_path / "text.mp4", output=tmp_path / "out")

    def test_a_frame_that_does_not_fit_is_found_before_any_work(self, video_pipe, frames, tmp_path):
        picture(9, side=12).save(frames / "f9.png")
        with pytest.raises(UserError, match=r"f9\.png has 12x12 pixels"):
            video_pipe(frames, output=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("ending", ["png", "jpg"])
    def test_so_is_one_that_ends_early(self, video_pipe, frames, tmp_path, no_work, ending):
        picture(9, side=64).resize((8, 8)).save(frames / f"f9.{ending}")
        whole = (frames / f"f9.{ending}").read_bytes()
        (frames / f"f9.{ending}").write_bytes(whole[: len(whole) - 40])
        with pytest.raises(UserError, match=rf"f9\.{ending} is not readable"):
            video_pipe(frames, output=tmp_path / "large.mp4")

    def test_a_folder_in_the_place_of_a_result_too(self, video_pipe, frames, video, tmp_path, no_work):
        (tmp_path / "folder.mp4").mkdir()
        (tmp_path / "out" / "f2.png").mkdir(parents=True)
        with pytest.raises(UserError, match=r"folder\.mp4 is a folder, and a result would have that name"):
            video_pipe(video, output=tmp_path / "folder.mp4")
        with pytest.raises(UserError, match=r"f2\.png is a folder"):
            video_pipe(frames, output=tmp_path / "out")

    def test_a_result_of_another_name_may_lie_beside_the_input(self, pipe, video):
        other = video.rename(video.with_suffix(".mov"))
        assert pipe(other, output=video.parent) == video


def test_a_clip_becomes_frames_and_a_video_at_once(pipe, frames, tmp_path):
    clip, images = open_frames(frames), [tmp_path / "large" / f"{number}.png" for number in range(5)]
    upscale_clip(pipe, clip, tmp_path / "large.mp4", images)
    assert len(VideoFrames(tmp_path / "large.mp4")) == 5
    expected = as_saved(pipe(torch.stack(list(clip))[None])[0])
    torch.testing.assert_close(torch.stack(list(iter_frames(tmp_path / "large"))), expected, atol=1.01 / 255, rtol=0)


class TestSaving:
    def test_rounded_not_cut(self, tmp_path):
        save_image(torch.full((3, 4, 4), 99.6 / 255), tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").unique().tolist() == [100]

    def test_what_cannot_be_written_leaves_what_was_there(self, tmp_path):
        save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
        with pytest.raises(UserError, match="images are written as"):
            save_image(torch.ones(3, 4, 4), tmp_path / "a.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
