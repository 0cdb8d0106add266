"""Video files are read frame by frame or in part, and written so that they play everywhere."""

import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from weakref import ref

import av
import pytest
import torch
from av.video.reformatter import Colorspace
from torch.testing import assert_close

from quantsr.data.video import VideoFrames, iter_frames, open_frames, write_video
from quantsr.data.yuv import from_video_frame, pad_to_even, to_video_frame
from quantsr.errors import UserError

LENGTH = 23


def clip(height: int = 32, width: int = 48, length: int = LENGTH) -> torch.Tensor:
    """A dark square that moves over slow colours, (length, 3, height, width)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    frames = torch.stack([x, y, 0.5 + 0 * x]).repeat(length, 1, 1, 1)
    for number, frame in enumerate(frames):
        frame[:, 8:16, number : number + 8] = 0.1
    return frames


def encode(path: Path, codec: str = "libx264", rotation: int = 0, **options: str) -> Path:
    """Write `clip()` with any codec PyAV has."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in clip():
            container.mux(stream.encode(to_video_frame(frame)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, clip(), fps=30000 / 1001)
    return path


class TestWriteAndRead:
    def test_frames_come_back(self, video):
        frames = VideoFrames(video)
        assert len(frames) == LENGTH and frames.size == (32, 48) and frames.fps == Fraction(30000, 1001)
        decoded = torch.stack(list(frames))
        assert decoded.dtype == torch.float32 and decoded.min() >= 0 and decoded.max() <= 1
        assert (decoded - clip()).abs().mean() < 0.02

    @pytest.mark.parametrize("colour", [(0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9), (1.0, 1.0, 1.0)], ids=str)
    def test_colours_stay(self, tmp_path, colour):
        frame = torch.tensor(colour)[:, None, None].expand(3, 32, 32)
        write_video(tmp_path / "a.mp4", [frame] * 2, fps=25)
        assert_close(next(iter_frames(tmp_path / "a.mp4")), frame, atol=3 / 255, rtol=0)

    def test_player_is_told_what_the_pixels_mean(self, video):
        with av.open(video) as container:
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert context.colorspace == context.color_primaries == context.color_trc == 1  # BT.709
            assert context.color_range == 1  # limited

    def test_odd_sides_get_one_more_pixel(self, tmp_path):
        write_video(tmp_path / "a.mp4", clip(31, 47), fps=25)
        frames = VideoFrames(tmp_path / "a.mp4")
        assert frames.size == (32, 48)
        assert (frames.read(3, 4)[..., :31, :47] - clip(31, 47)[3:4]).abs().mean() < 0.02

    def test_frames_are_asked_for_one_by_one(self, tmp_path):
        """However long the video, the frames written are forgotten; the first tells the size."""
        alive = []

        def frames() -> Iterator[torch.Tensor]:
            for number in range(50):
                assert all(frame() is None for frame in alive[1:-2])
                frame = torch.full((3, 16, 16), number / 50)
                alive.append(ref(frame))
                yield frame

        write_video(tmp_path / "a.mp4", frames(), fps=25)
        assert len(VideoFrames(tmp_path / "a.mp4")) == 50

    def test_reading_stops_where_the_reader_stops(self, video, monkeypatch):
        decoded = []
        to_tensor = lambda frame: decoded.append(frame) or from_video_frame(frame)  # noqa: E731
        monkeypatch.setattr("quantsr.data.video.from_video_frame", to_tensor)
        stream = iter_frames(video)
        next(stream), next(stream)
        # One more to learn the size.
        assert len(decoded) == 3


class TestRandomAccess:
    @pytest.mark.parametrize(
        ("name", "codec", "options"),
        [
            pytest.param("a.mp4", "libx264", {}, id="one key frame"),
            pytest.param("a.mp4", "libx264", {"x264-params": "keyint=6:open-gop=1:bframes=3:b-adapt=0"}, id="open"),
            pytest.param("a.mkv", "libx264", {"g": "5"}, id="matroska"),
            pytest.param("a.avi", "mpeg4", {"g": "5", "bf": "2"}, id="file without times"),
        ],
    )
    def test_any_range_is_that_of_the_stream(self, tmp_path, name, codec, options):
        frames = VideoFrames(encode(tmp_path / name, codec, **options))
        whole = torch.stack(list(frames))
        assert len(frames) == len(whole) == LENGTH
        for start in range(LENGTH):
            stop = min(start + 3, LENGTH)
            assert torch.equal(frames.read(start, stop), whole[start:stop])

    def test_end_may_be_left_open(self, video):
        assert len(list(VideoFrames(video).stream(LENGTH - 4))) == 4

    def test_range_beyond_the_end_is_an_error(self, video):
        with pytest.raises(UserError, match=r"clip\.mp4 ends early: 30 frames expected, 23 found"):
            VideoFrames(video).read(20, 30)
        with pytest.raises(UserError, match="ends early"):
            VideoFrames(video).read(28, 30)


def test_portrait_stored_lying_is_turned_upright(tmp_path):
    lying, upright = (VideoFrames(encode(tmp_path / f"{turn}.mp4", rotation=turn)) for turn in (0, 90))
    assert upright.size == (48, 32)
    assert torch.equal(upright.read(0, 1), lying.read(0, 1).rot90(1, (-2, -1)))


class TestFailures:
    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"No video file at .*nowhere\.mp4"):
            VideoFrames(tmp_path / "nowhere.mp4")

        with pytest.raises(UserError, match="no folder of images at"):
            iter_frames(tmp_path / "nowhere")

    @pytest.mark.parametrize("content", [b"", b"no video at all"], ids=["empty", "text"])
    def test_no_video(self, tmp_path, content):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.mp4 is not readable as a video"):
            next(iter_frames(tmp_path / "a.mp4"))

    def test_what_is_no_video_by_its_name_is_told_what_files_can_be(self, tmp_path):
        (tmp_path / "note.txt").write_text("no video at all")
        kinds = r"images end in \.png \.jpg .*, videos in \.mp4 \.m4v .*\.$"
        with pytest.raises(UserError, match=rf"note\.txt is not readable as a video \(.*\): {kinds}"):
            open_frames(tmp_path / "note.txt")

    def test_only_sound(self, tmp_path):
        with wave.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", "none"))
            file.writeframes(bytes(1600))
        with pytest.raises(UserError, match=r"a\.wav has no video in it"):
            VideoFrames(tmp_path / "a.wav")

    def test_other_ending_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"ends in \.mp4, not a\.avi"):
            write_video(tmp_path / "a.avi", clip(), fps=25)

    def test_a_folder_of_that_name_is_refused_before_a_frame_is_asked_for(self, tmp_path):
        (tmp_path / "a.mp4").mkdir()
        frames = iter(clip())
        with pytest.raises(UserError, match=r"a\.mp4 is a folder"):
            write_video(tmp_path / "a.mp4", frames, fps=25)
        assert len(list(frames)) == len(clip())

    def test_no_encoder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(av, "codecs_available", set())
        with pytest.raises(UserError, match=r"cannot write H\.264"):
            write_video(tmp_path / "a.mp4", clip(), fps=25)

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            pytest.param([], "at least one frame", id="none"),
            pytest.param(
                [torch.zeros(3, 16, 16), torch.zeros(3, 16, 32)], r"\(3, 16, 16\) and \(3, 16, 32\)", id="two sizes"
            ),
        ],
    )
    def test_impossible_frames_leave_no_file(self, tmp_path, frames, message):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / "a.mp4", frames, fps=25)
        assert not list(tmp_path.iterdir())

    def test_failure_in_the_middle_keeps_the_old_file(self, tmp_path):
        def frames():
            yield torch.zeros(3, 16, 16)
            raise RuntimeError("out of memory")

        (tmp_path / "a.mp4").write_text("old")
        with pytest.raises(RuntimeError, match="out of memory"):
            write_video(tmp_path / "a.mp4", frames(), fps=25)
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
        assert (tmp_path / "a.mp4").read_text() == "old"


def test_folder_and_file_are_read_alike(tmp_path, video, save_image):
    for number in (10, 2):
        save_image(tmp_path / f"{number}.png", seed=number)
    assert [type(open_frames(path)).__name__ for path in (tmp_path, video)] == ["FolderFrames", "VideoFrames"]
    assert len(list(iter_frames(tmp_path))) == 2 and len(list(iter_frames(video))) == LENGTH


def test_padding_repeats_the_last_row_and_column():
    x = torch.rand(2, 3, 5, 7)
    padded = pad_to_even(x)
    assert padded.shape == (2, 3, 6, 8)
    assert torch.equal(padded[..., :5, 7], x[..., 6]) and torch.equal(padded[..., 5, :7], x[..., 4, :])
    assert torch.equal(pad_to_even(x[..., :4, :6]), x[..., :4, :6])


def test_frames_of_the_codec_are_clamped():
    x = torch.cat([torch.full((3, 4, 8), 2.0), torch.full((3, 4, 8), -1.0)], -2)
    assert_close(from_video_frame(to_video_frame(x)), x.clamp(0, 1), atol=2 / 255, rtol=0)


MATRICES = pytest.mark.parametrize("colorspace", [Colorspace.ITU601, Colorspace.ITU709], ids=lambda space: space.name)


@MATRICES
def test_colours_of_a_frame_come_back(colorspace):
    x = torch.rand(3, 16, 24).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert_close(from_video_frame(to_video_frame(x, colorspace)), x, atol=3 / 255, rtol=0)


@MATRICES
def test_one_colour_is_that_of_ffmpeg(colorspace):
    for colour in torch.rand(10, 3):
        x = colour[:, None, None].expand(3, 16, 16)
        pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        expected = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        expected = expected.reformat(format="yuv420p", dst_colorspace=colorspace)
        planes = [torch.from_numpy(frame.to_ndarray()).int() for frame in (to_video_frame(x, colorspace), expected)]
        assert_close(*planes, atol=1, rtol=0)


def test_primaries_have_the_values_of_the_standard():
    """ITU-R BT.601-7, 100 % colour bars in 8 bits: Y, Cb, Cr of white, red, green, blue and black."""
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    expected = [(235, 128, 128), (81, 90, 240), (145, 54, 34), (41, 240, 110), (16, 128, 128)]
    for colour, values in zip(colours, expected, strict=True):
        planes = to_video_frame(colour[:, None, None].expand(3, 4, 4)).to_ndarray()
        assert tuple(planes[[0, 4, 5], [0, 0, 0]]) == values


def test_a_colour_value_is_the_mean_of_four_pixels_and_holds_for_them():
    x = torch.tensor([0.0, 1.0]).repeat(3, 4, 2)
    x[0] = 0.5
    frame = to_video_frame(x)
    assert (frame.to_ndarray()[4:] == frame.to_ndarray()[4:, :1]).all()
    back = from_video_frame(frame)
    difference = back[0] - back[2]
    assert_close(difference, difference[:1, :1].expand(4, 4), atol=1.1 / 255, rtol=0)


@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuvj420p", "rgb24", "gray"])
def test_other_formats_are_read_too(pixel_format):
    gray = torch.full((3, 16, 16), 0.4)
    frame = to_video_frame(gray).reformat(format=pixel_format)
    assert_close(from_video_frame(frame), gray, atol=3 / 255, rtol=0)
