"""Still photographs become clips, reproducible by their number, with the true flow where results are measured."""

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.data.clip_degradations import ClipDegradation
from quantsr.data.motion import Joined, MotionDataModule, MovingCrops
from quantsr.errors import UserError
from tests.data.test_camera import look_up

PHOTOS = {"astronaut", "chelsea", "coffee", "rocket", "china", "flower"}


def photos(*sizes: tuple[int, int]) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (f"photo{i}", torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8))
        for i, size in enumerate(sizes)
    ]


def moving(random: bool = False, seed: int = 0, **options) -> MovingCrops:
    settings = {"frames": 3, "crop": 32, "degradation": ClipDegradation(), "clips_per_photo": 2} | options
    return MovingCrops(photos((64, 80), (70, 64)), seed=seed, random=random, **settings)


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and all(torch.equal(a[key], b[key]) for key in ("lq", "gt"))


class TestMovingCrops:
    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    @pytest.mark.parametrize("scale", [2, 4], ids=["scale 2", "scale 4"])
    def test_sample(self, random, scale):
        sample = moving(random, degradation=ClipDegradation(scale))[1]
        assert set(sample) == {"lq", "gt", "name"} and sample["name"] == "photo0_1"
        assert sample["gt"].shape == (3, 3, 32, 32) and sample["lq"].shape == (3, 3, 32 // scale, 32 // scale)
        for clip in (sample["lq"], sample["gt"]):
            assert clip.dtype == torch.float32 and clip.min() >= 0 and clip.max() <= 1

    def test_every_photo_gives_its_clips(self):
        data = moving()
        assert [data[number]["name"] for number in range(len(data))] == ["photo0_0", "photo0_1", "photo1_0", "photo1_1"]
        assert not torch.equal(data[0]["gt"], data[1]["gt"])

    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    def test_equal_seed_and_number_give_equal_samples(self, random):
        assert all(equal(moving(random)[number], moving(random)[number]) for number in range(6))

    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    def test_seed_decides(self, random):
        assert not equal(moving(random, seed=0)[0], moving(random, seed=1)[0])

    def test_only_random_visits_differ(self):
        for random in (True, False):
            first, later = moving(random)[1], moving(random)[1 + 4]
            assert first["name"] == later["name"]
            assert torch.equal(first["gt"], later["gt"]) is not random
            assert torch.equal(first["lq"], later["lq"]) is not random

    def test_flow_comes_when_asked_for(self):
        assert moving(flow=True)[0]["flow"].shape == (2, 2, 32, 32)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"crop": 30}, "30 pixels does not divide by the scale 4", id="indivisible"),
            pytest.param({"crop": 68}, r"crop of 68 pixels \(data\.crop=64 would fit\)", id="too large"),
            pytest.param({"frames": 0}, "0 and 2 are too few", id="no frame"),
            pytest.param({"clips_per_photo": 0}, "3 and 0 are too few", id="no clip"),
        ],
    )
    def test_impossible_settings_are_refused(self, options, message):
        with pytest.raises(UserError, match=message):
            moving(**options)

    def test_no_photo_is_refused(self):
        with pytest.raises(UserError, match="at least one photograph"):
            MovingCrops([], 5, 32, ClipDegradation())


def names(data) -> list[str]:
    return [data[number]["name"] for number in range(len(data))]


def photos_of(data: MovingCrops) -> set[str]:
    return {name for name, _ in data.photos}


@pytest.fixture
def folder(tmp_path, save_image):
    """Six photographs to train on and two to test on, of 96x80 pixels."""
    for i in range(8):
        save_image(tmp_path / "photos" / f"{'train' if i < 6 else 'test'}_{i}.png", width=96, height=80, seed=i)
    return tmp_path / "photos"


@pytest.fixture
def real(tmp_path, save_image):
    """A real clip `walk` of 7 frames and a short one, of 72x40 pixels."""
    for name, length in (("walk", 7), ("short", 2)):
        for i in range(length):
            save_image(tmp_path / "real" / name / f"{i}.png", width=72, height=40, seed=100 + i)
    return tmp_path / "real"


@pytest.fixture(scope="module")
def module() -> MotionDataModule:
    """The default: clips of the packaged photographs."""
    module = MotionDataModule()
    module.setup("fit")
    return module


class TestPackagedPhotographs:
    def test_summary_tells_the_lengths(self, module):
        assert module.frames == 5
        assert module.summary() == (
            "MotionDataModule: calibration 12 samples of 5x 32x32 -> 128x128, "
            "validation 6 samples of 10x 32x32 -> 128x128"
        )

    def test_flow_of_validation_leads_from_frame_to_frame(self, module):
        for number in range(len(module.validation())):
            sample = module.validation()[number]
            assert sample["flow"].shape == (9, 2, 128, 128)
            warped, inside = look_up(sample["gt"][1:], sample["flow"])
            error, still = (
                (clip - sample["gt"][:-1]).abs().mean(1)[inside].mean() for clip in (warped, sample["gt"][1:])
            )
            # What is left is what interpolation does to texture.
            assert error < 0.012 and error < still / 2

    @pytest.mark.parametrize("seed", [0, 1, 2], ids=lambda seed: f"seed {seed}")
    def test_no_photo_is_in_both_parts(self, seed):
        module = MotionDataModule(seed=seed)
        calibration, validation = photos_of(module.calibration()), photos_of(module.validation())
        assert len(calibration) == 4 and len(validation) == 2
        assert calibration | validation == PHOTOS

    def test_patterns_choose_by_name(self):
        module = MotionDataModule(pattern="c*", validation_pattern="co*")
        assert photos_of(module.calibration()) == {"chelsea", "china"}
        assert photos_of(module.validation()) == {"coffee"}

    def test_training_batches(self):
        module = MotionDataModule(crop=64, batch_size=2, random_crops=True)
        module.steps = 3
        batches = list(module.train_dataloader())
        assert [batch["lq"].shape for batch in batches] == [(2, 5, 3, 16, 16)] * 3
        assert set(batches[0]) == {"lq", "gt", "name"}


class TestFolder:
    def test_photos_are_divided_by_pattern(self, folder):
        module = MotionDataModule(folder, "train_*", validation_pattern="test_*", crop=32, clips_per_photo=1)
        assert names(module.calibration()) == [f"train_{i}_0" for i in range(6)]
        assert names(module.validation()) == ["test_6_0", "test_7_0"]

    def test_photos_are_divided_by_share(self, folder):
        module = MotionDataModule(folder, validation_share=0.25, crop=32)
        calibration, validation = photos_of(module.calibration()), photos_of(module.validation())
        assert len(calibration) == 6 and len(validation) == 2 and not calibration & validation

    def test_nothing_left_is_said(self, folder):
        with pytest.raises(UserError, match=r"left for calibration: change validation_share \(1\)"):
            MotionDataModule(folder, validation_share=1).calibration()
        with pytest.raises(UserError, match="the packaged ones is left for validation"):
            MotionDataModule(validation_pattern="nothing*").validation()

    def test_broken_and_small_photos_are_counted(self, folder, save_image):
        save_image(folder / "train_small.png", width=31)
        (folder / "test_broken.png").write_text("no image")
        module = MotionDataModule(folder, "train_*", validation_pattern="test_*", crop=32)
        module.setup("fit")
        assert [name for name, _ in module.skipped] == ["train_small.png", "test_broken.png"]

    def test_validation_has_its_own_length_and_crop(self, folder):
        module = MotionDataModule(folder, crop=32, frames=4, validation_frames=2, validation_crop=64)
        assert module.calibration()[0]["gt"].shape == (4, 3, 32, 32)
        assert module.validation()[0]["gt"].shape == (2, 3, 64, 64)


class TestRealClips:
    def build(self, folder, real, **options) -> MotionDataModule:
        return MotionDataModule(folder, crop=32, frames=3, clips_per_photo=1, real=real, **options)

    def test_fixed_segments_follow_the_photos(self, folder, real):
        module = self.build(folder, real)
        data = module.calibration()
        assert names(data)[-2:] == ["walk_0", "walk_3"] and len(data) == 5 + 2
        pixels = np.array(Image.open(real / "walk" / "4.png"))[4:36, 20:52]
        assert torch.equal(data[len(data) - 1]["gt"][1] * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
        assert [name for name, _ in module.skipped] == ["short"]

    def test_random_visits_draw_place_and_time(self, folder, real):
        data = self.build(folder, real, random_crops=True).calibration()
        # Two segments of a clip that is two crops wide.
        assert len(data) == 5 + 2 * 2
        visits = [data[len(data) - 1 + visit * len(data)] for visit in range(12)]
        assert {visit["name"] for visit in visits} == {f"walk_{start}" for start in range(5)}
        assert len({visit["gt"].numpy().tobytes() for visit in visits}) == 12
        assert all(visit["gt"].shape == (3, 3, 32, 32) and "flow" not in visit for visit in visits)

    def test_pattern_chooses(self, folder, real):
        with pytest.raises(UserError, match=r"real_pattern=run\*"):
            self.build(folder, real, real_pattern="run*").calibration()

    def test_batches_mix_both(self, folder, real):
        module = self.build(folder, real, batch_size=9, random_crops=True)
        module.steps = 2
        for batch in module.train_dataloader():
            assert batch["gt"].shape == (9, 3, 3, 32, 32)
            assert sum(name.startswith("walk") for name in batch["name"]) == 4


def test_joined_sets_hear_of_later_visits():
    class Numbers(list):
        def __getitem__(self, number):
            return f"{list.__getitem__(self, number % len(self))} visit {number // len(self)}"

    data = Joined([Numbers("ab"), Numbers("cde")])
    assert [data[number] for number in (0, 1, 2, 4)] == ["a visit 0", "b visit 0", "c visit 0", "e visit 0"]
    assert [data[number + 10] for number in (0, 4)] == ["a visit 2", "e visit 2"]


def test_real_photographs_and_clips_train_a_teacher(shared_data):
    module = MotionDataModule(
        shared_data / "photos",
        "train_10*",
        validation_pattern="test_10*",
        real=shared_data / "clips",
        clips_per_photo=1,
        random_crops=True,
        batch_size=2,
    )
    module.steps = 3
    for batch in module.train_dataloader():
        assert batch["lq"].shape == (2, 5, 3, 32, 32) and batch["gt"].shape == (2, 5, 3, 128, 128)
