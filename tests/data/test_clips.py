"""Folders of clips serve to train a teacher, to calibrate a student and to measure."""

import pytest
import torch
from PIL import Image

from quantsr.data.clip_degradations import ClipDegradation
from quantsr.data.clips import ClipsDataModule
from quantsr.data.files import read_image
from quantsr.data.video import write_video
from quantsr.errors import UserError


@pytest.fixture
def save_clip(save_image):
    """Writes a folder of frames `0.png` and so on, every one different."""

    def save(path, length: int, width: int, height: int):
        for number in range(length):
            save_image(path / f"{number}.png", width, height, seed=number)
        return path

    return save


@pytest.fixture
def gt(tmp_path, save_clip):
    """Five clips `0` to `4` of 7 frames of 66x48 pixels."""
    for number in range(5):
        save_clip(tmp_path / "GT" / str(number), 7, 66, 48)
    return tmp_path / "GT"


@pytest.fixture
def lq(tmp_path, gt):
    """Their low-quality versions: every fourth pixel, so that it shows whether both are of the same place."""
    for path in gt.glob("*/*.png"):
        small = tmp_path / "LQ" / path.parent.name / path.name
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.crop((0, 0, 64, 48)).resize((16, 12), Image.Resampling.NEAREST).save(small)
    return tmp_path / "LQ"


def names(data) -> list[str]:
    return [data[number]["name"] for number in range(len(data))]


def module(gt, lq=None, **options) -> ClipsDataModule:
    return ClipsDataModule(gt, lq, **{"frames": 3, "crop": 32, "validation_pattern": "4"} | options)


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and all(torch.equal(a[key], b[key]) for key in ("lq", "gt"))


class TestCalibration:
    def test_clips_give_segments_one_after_the_other(self, gt):
        data = module(gt).calibration()
        # The first of every clip before the second of any.
        assert names(data) == [f"{clip}_{start}" for start in (0, 3) for clip in range(4)]

    def test_fixed_segment_is_the_centre(self, gt):
        sample = module(gt).calibration()[4]  # The second segment of clip 0.
        assert sample["lq"].shape == (3, 3, 8, 8)
        frame = read_image(gt / "0" / "5.png")[:, 8:40, 16:48]
        assert torch.equal(sample["gt"][2] * 255, frame.float())

    def test_random_visits_draw_place_and_time(self, gt):
        data = module(gt, random_crops=True).calibration()
        visits = [data[2 + visit * len(data)] for visit in range(20)]
        assert {visit["name"] for visit in visits} == {f"2_{start}" for start in range(5)}
        assert len({visit["gt"].numpy().tobytes() for visit in visits}) == 20

    @pytest.mark.parametrize("random_crops", [True, False], ids=["random", "fixed"])
    def test_equal_seed_and_number_give_equal_samples(self, gt, random_crops):
        data, again, other = (module(gt, random_crops=random_crops, seed=s).calibration() for s in (0, 0, 1))
        assert all(equal(data[number], again[number]) for number in (0, 5, 9))
        assert not equal(data[5], other[5])
        assert equal(data[1], data[1 + len(data)]) is not random_crops

    @pytest.mark.parametrize("random_crops", [True, False], ids=["random", "fixed"])
    def test_both_crops_show_the_same_place(self, gt, lq, random_crops):
        data = module(gt, lq, random_crops=random_crops).calibration()
        for number in range(0, 40, 3):
            sample = data[number]
            assert sample["lq"].shape == (3, 3, 8, 8) and sample["gt"].shape == (3, 3, 32, 32)
            # A turn of the crop moves the pixel that was kept of each 4x4 block.
            kept = [torch.equal(sample["gt"][..., y::4, x::4], sample["lq"]) for y in range(4) for x in range(4)]
            assert sum(kept) == 1

    def test_batches(self, gt, lq):
        data = module(gt, lq, batch_size=2, random_crops=True, num_workers=1)
        data.steps = 2
        for batch in data.train_dataloader():
            assert batch["lq"].shape == (2, 3, 3, 8, 8) and batch["gt"].shape == (2, 3, 3, 32, 32)


class TestValidation:
    def test_clips_are_whole_but_for_what_the_scale_leaves_over(self, gt):
        sample = module(gt).validation()[0]
        assert sample["name"] == "4"
        assert sample["gt"].shape == (7, 3, 48, 64) and sample["lq"].shape == (7, 3, 12, 16)
        assert torch.equal(sample["gt"][6] * 255, read_image(gt / "4" / "6.png")[..., :64].float())

    def test_pairs_are_whole(self, gt, lq):
        sample = module(gt, lq).validation()[0]
        assert torch.equal(sample["lq"][3] * 255, read_image(lq / "4" / "3.png").float())
        assert sample["gt"].shape == (7, 3, 48, 64)

    def test_length_and_crop_can_be_limited(self, gt, lq):
        sample = module(gt, lq, validation_frames=2, validation_crop=32).validation()[0]
        assert sample["gt"].shape == (2, 3, 32, 32) and sample["lq"].shape == (2, 3, 8, 8)
        assert len(module(gt, validation_frames=50).validation()[0]["gt"]) == 7

    def test_share_divides_without_overlap(self, gt):
        data = module(gt, validation_pattern=None, validation_share=0.4)
        calibration = {name.split("_")[0] for name in names(data.calibration())}
        assert len(calibration) == 3 and not calibration & set(names(data.validation()))

    def test_videos_are_clips(self, gt):
        write_video(gt / "5.mp4", torch.rand(4, 3, 48, 64), fps=25)
        assert module(gt, validation_pattern="5").validation()[0]["gt"].shape == (4, 3, 48, 64)


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "degraded"])
@pytest.mark.parametrize("validation_crop", [None, 32], ids=["whole", "crop"])
def test_shapes_are_known_without_reading(gt, lq, pairs, validation_crop):
    data = module(gt, lq if pairs else None, validation_crop=validation_crop)
    for part in (data.calibration(), data.validation()):
        sample = part[0]
        assert part.shapes() == {key: tuple(sample[key].shape) for key in ("lq", "gt")}


def test_summary_tells_lengths_and_what_was_left_out(gt, lq, save_clip):
    save_clip(gt / "lonely", 7, 66, 48)
    (gt / "1" / "2.png").write_text("no image")
    data = module(gt, lq)
    data.setup("fit")
    assert data.frames == 3
    assert data.summary() == (
        "ClipsDataModule: calibration 6 samples of 3x 8x8 -> 32x32, "
        "validation 1 samples of 7x 16x12 -> 64x48, 2 files skipped"
    )
    assert [name for name, _ in data.skipped] == ["lonely", "1"]


class TestFailures:
    def test_nothing_left_says_why(self, gt):
        with pytest.raises(UserError, match="left for calibration, 0 were skipped: change validation_share"):
            module(gt, validation_pattern="*").calibration()
        with pytest.raises(UserError, match=r"left for calibration, 4 were skipped \(0: 7 frames, fewer than 9\)"):
            module(gt, frames=9).calibration()

    def test_no_common_name(self, gt, save_clip, tmp_path):
        save_clip(tmp_path / "other" / "cat", 7, 16, 12)
        with pytest.raises(UserError, match=r"No clip of .*other has the name of one in"):
            module(gt, tmp_path / "other").calibration()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"degradation": ClipDegradation(2)}, "scale, 2, differs from the data's, 4", id="two scales"),
            pytest.param({"frames": 0}, "frames=0", id="no frame"),
            pytest.param({"validation_frames": 0}, "validation_frames=0", id="no frame to measure"),
            pytest.param({"crop": 30}, "30 pixels does not divide", id="indivisible crop"),
        ],
    )
    def test_impossible_settings(self, gt, options, message):
        with pytest.raises(UserError, match=message):
            module(gt, **options).calibration()


class TestWithoutGroundTruth:
    def test_whole_clips_are_given_as_they_are(self, gt, lq):
        both, alone = module(gt, lq).validation(), module(None, lq).validation()
        assert list(alone[0]) == ["lq", "name"] and alone[0]["name"] == "4"
        assert torch.equal(alone[0]["lq"], both[0]["lq"])
        assert alone.shapes() == {"lq": (7, 3, 12, 16)}

    @pytest.mark.parametrize("random_crops", [False, True])
    def test_crops_are_those_beside_the_ground_truth(self, gt, lq, random_crops):
        both, alone = (module(folder, lq, random_crops=random_crops).calibration() for folder in (gt, None))
        assert len(alone) == len(both) and alone.shapes() == {"lq": (3, 3, 8, 8)}
        for number in (0, 3, 11):
            assert torch.equal(alone[number]["lq"], both[number]["lq"])
            assert alone[number]["name"] == both[number]["name"]

    def test_summary_says_so(self, lq):
        data = module(None, lq)
        data.setup("validate")
        assert data.summary() == "ClipsDataModule: validation 1 samples of 7x 16x12, no ground truth"

    def test_nothing_left_names_the_folder(self, lq):
        with pytest.raises(UserError, match=r"No clip of .*LQ is left for validation"):
            module(None, lq, validation_pattern="x").validation()

    def test_no_folder_at_all(self):
        with pytest.raises(UserError, match=r"give data\.gt, data\.lq or both"):
            module(None)


def test_real_clips_are_read(shared_data):
    data = ClipsDataModule(shared_data / "clips", validation_pattern="temple", validation_frames=3, crop=128)
    data.setup("fit")
    assert len(data.calibration()) == 3 * 3
    assert data.validation()[0]["lq"].shape == (3, 3, 80, 128)
    assert data.calibration()[0]["gt"].shape == (5, 3, 128, 128)
