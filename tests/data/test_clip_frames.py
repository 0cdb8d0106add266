"""A folder of images is a clip: in natural order, of one size, decoded when asked for."""

import pytest
import torch
from PIL import Image

from quantsr.data.clip_frames import FolderFrames
from quantsr.data.files import read_image
from quantsr.errors import UserError


@pytest.fixture
def folder(tmp_path, save_image):
    """Five frames, numbered from 8 to 12, of 24x16 pixels."""
    for number in range(8, 13):
        save_image(tmp_path / f"frame{number}.png", 24, 16, seed=number)
    return tmp_path


def test_frames_come_in_natural_order(folder):
    frames = FolderFrames(folder)
    assert len(frames) == 5 and frames.size == (16, 24)
    for number, frame in enumerate(frames, start=8):
        assert frame.dtype == torch.float32
        assert torch.equal(frame * 255, read_image(folder / f"frame{number}.png").float())


def test_range_is_that_of_the_stream(folder):
    frames = FolderFrames(folder)
    whole = torch.stack(list(frames))
    assert torch.equal(frames.read(1, 4), whole[1:4])
    assert torch.equal(torch.stack(list(frames.stream(3))), whole[3:])


def test_only_what_is_asked_for_is_decoded(folder):
    (folder / "frame12.png").write_text("no image")
    assert FolderFrames(folder).read(0, 4).shape == (4, 3, 16, 24)


def test_range_beyond_the_end_is_an_error(folder):
    with pytest.raises(UserError, match="ends early: 7 frames expected, 5 found"):
        FolderFrames(folder).read(4, 7)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"No image folder at .*nowhere"):
        FolderFrames(tmp_path / "nowhere")
    with pytest.raises(UserError, match="No image in"):
        FolderFrames(tmp_path)


def test_broken_frame_is_named_when_it_is_reached(folder):
    whole = (folder / "frame10.png").read_bytes()
    (folder / "frame10.png").write_bytes(whole[: len(whole) // 2])
    frames = FolderFrames(folder)
    frames.check(decode_to=2)
    for reach in (lambda: frames.check(), lambda: frames.read(2, 3)):
        with pytest.raises(UserError, match=r"frame10\.png is not readable .*: replace it"):
            reach()


def test_file_that_is_no_image_is_found_without_decoding(folder):
    (folder / "frame11.png").write_text("no image")
    with pytest.raises(UserError, match=r"frame11\.png is not readable"):
        FolderFrames(folder).check(decode_to=0)


def test_frames_of_two_sizes_are_refused(folder):
    Image.new("RGB", (20, 16)).save(folder / "frame11.png")
    with pytest.raises(UserError, match=r"frame11\.png has 20x16 pixels and the first frame of the clip 24x16"):
        list(FolderFrames(folder))
