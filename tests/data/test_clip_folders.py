"""Clips are found by name and divided; those that cannot be used are named, with the reason."""

import av
import pytest
import torch
from PIL import Image

from quantsr.data.clip_folders import divide, list_clips, open_clips
from quantsr.data.video import write_video
from quantsr.data.yuv import to_video_frame
from quantsr.errors import UserError

NAMED = [(name, number) for number, name in enumerate(("000", "001", "011", "100"))]


@pytest.fixture
def save_clip(save_image):
    """Writes a folder of frames."""

    def save(path, length: int = 4, width: int = 64, height: int = 32):
        for number in range(length):
            save_image(path / f"{number}.png", width, height, seed=number)
        return path

    return save


class TestListClips:
    def test_folders_and_videos_are_clips(self, tmp_path, save_clip):
        for name in ("clip10", "clip2"):
            save_clip(tmp_path / name, 1)
        write_video(tmp_path / "clip3.mp4", torch.zeros(1, 3, 16, 16), fps=25)
        (tmp_path / "notes.txt").write_text("no clip")
        (tmp_path / ".cache").mkdir()
        assert list_clips(tmp_path) == [
            ("clip2", tmp_path / "clip2"),
            ("clip3", tmp_path / "clip3.mp4"),
            ("clip10", tmp_path / "clip10"),
        ]

    def test_folders_that_differ_behind_a_dot_are_two_clips(self, tmp_path, save_clip):
        for name in ("walk.1", "walk.2"):
            save_clip(tmp_path / name, 1)
        assert [name for name, _ in list_clips(tmp_path)] == ["walk.1", "walk.2"]

    def test_star_stands_for_the_name_of_a_clip(self, tmp_path, save_clip):
        for name in ("clip10", "clip2"):
            save_clip(tmp_path / name / "truth", 1)
        (tmp_path / "empty").mkdir()
        clips = list_clips(tmp_path / "*" / "truth")
        assert clips == [(name, tmp_path / name / "truth") for name in ("clip2", "clip10")]
        with pytest.raises(UserError, match=r"No clip in .*: looked for a folder blur4 in each of its subfolders"):
            list_clips(tmp_path / "*" / "blur4")

    def test_a_folder_and_a_video_of_one_name_are_refused(self, tmp_path, save_clip):
        save_clip(tmp_path / "walk", 1)
        (tmp_path / "walk.mp4").touch()
        with pytest.raises(UserError, match=r"walk and walk\.mp4 in .* have the same name: keep one"):
            list_clips(tmp_path)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"No folder of clips at .*nowhere"):
            list_clips(tmp_path / "nowhere")

    def test_folder_of_frames_is_no_folder_of_clips(self, tmp_path, save_clip):
        with pytest.raises(UserError, match=r"No clip in .*: looked for subfolders of frames and .*\.mp4"):
            list_clips(save_clip(tmp_path))


class TestDivide:
    def test_pattern_for_validation_never_calibrates(self):
        calibration, validation = divide(NAMED, "0*", "*11", share=0.5)
        assert calibration == [("000", 0), ("001", 1)] and validation == [("011", 2)]

    def test_else_a_share_of_what_the_pattern_chooses(self):
        calibration, validation = divide(NAMED, "0*", None, share=0.34)
        assert len(validation) == 1 and sorted(calibration + validation) == NAMED[:3]

    def test_several_patterns(self):
        assert divide(NAMED, ["000", "1*"], None, share=0)[0] == [("000", 0), ("100", 3)]


class TestOpenClips:
    def open(self, root, **conditions):
        matches = [(name, path, root / "lq" / name) for name, path in list_clips(root / "gt")]
        settings = {"scale": 4, "frames": 3, "side": 32, "decode_to": None} | conditions
        return open_clips(matches, **settings)

    @pytest.fixture
    def root(self, tmp_path, save_clip):
        """One good pair."""
        save_clip(tmp_path / "gt" / "good")
        save_clip(tmp_path / "lq" / "good", width=16, height=8)
        return tmp_path

    def test_good_pair(self, root):
        [clip], skipped = self.open(root)
        assert clip.name == "good" and len(clip.gt) == len(clip.lq) == 4 and not skipped

    def test_what_is_left_over_by_the_scale_is_allowed(self, root, save_clip):
        save_clip(root / "gt" / "odd", width=67, height=34)
        save_clip(root / "lq" / "odd", width=16, height=8)
        assert [clip.name for clip in self.open(root)[0]] == ["good", "odd"]

    @pytest.mark.parametrize(
        ("gt", "lq", "reason"),
        [
            pytest.param({"length": 4}, {"length": 5}, "4 frames of gt and 5 of lq", id="other length"),
            pytest.param({"length": 2}, {"length": 2}, "2 frames, fewer than 3", id="short"),
            pytest.param({"height": 24}, {"height": 6}, "64x24 pixels, smaller than 32", id="small"),
            pytest.param({}, {"width": 32}, "not 4 times the size of lq, 32x8", id="other size"),
            pytest.param({}, {"length": 0}, "no folder of images", id="missing"),
        ],
    )
    def test_clips_that_do_not_fit_are_named(self, root, save_clip, caplog, gt, lq, reason):
        save_clip(root / "gt" / "bad", **gt)
        save_clip(root / "lq" / "bad", **{"width": 16, "height": 8} | lq)
        clips, [(name, said)] = self.open(root)
        assert [clip.name for clip in clips] == ["good"]
        assert name == "bad" and reason in said
        assert "skipped bad" in caplog.text

    @pytest.mark.parametrize("side", ["gt", "lq"])
    def test_unreadable_frame_of_either_side(self, root, save_clip, side):
        save_clip(root / "gt" / "bad")
        save_clip(root / "lq" / "bad", width=16, height=8)
        broken = root / side / "bad" / "2.png"
        broken.write_bytes(broken.read_bytes()[:-100])
        _, [(name, reason)] = self.open(root)
        assert name == "bad" and str(broken) in reason
        # Nobody looks at the pixels of this frame.
        assert len(self.open(root, decode_to=2)[0]) == 2

    @pytest.mark.parametrize(("decode_to", "found"), [(None, (11, 8)), (9, (9, 8)), (0, None)])
    def test_video_that_begins_behind_its_key_frame(self, tmp_path, decode_to, found):
        path = tmp_path / "a.mkv"
        with av.open(path, "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"x264-params": "keyint=4:scenecut=0:bframes=0"})
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            frames = [*map(to_video_frame, torch.zeros(12, 3, 16, 16)), None]
            for packet in [packet for frame in frames for packet in stream.encode(frame)][1:]:
                file.mux(packet)
        clips, skipped = open_clips([("a", path, None)], scale=4, frames=3, side=4, decode_to=decode_to)
        wanted = [("a", "{} has {} frames, of which {} can be decoded".format(path, *found))] if found else []
        assert skipped == wanted and len(clips) == 1 - len(wanted)

    def test_empty_folder_and_frames_of_two_sizes(self, root, save_clip):
        (root / "gt" / "empty").mkdir()
        save_clip(root / "gt" / "mixed")
        save_clip(root / "lq" / "mixed", width=16, height=8)
        Image.new("RGB", (64, 36)).save(root / "gt" / "mixed" / "3.png")
        for decode_to in (None, 0):
            skipped = dict(self.open(root, decode_to=decode_to)[1])
            assert "No image in" in skipped["empty"] and "frames of one size" in skipped["mixed"]

    def test_clips_without_ground_truth(self, root, save_clip):
        save_clip(root / "lq" / "small", width=16, height=7)
        matches = [(name, None, path) for name, path in list_clips(root / "lq")]
        [clip], [skipped] = open_clips(matches, scale=4, frames=3, side=32, decode_to=None)
        assert clip.name == "good" and clip.gt is None and len(clip) == 4
        assert skipped == ("small", "16x7 pixels, smaller than 8")
