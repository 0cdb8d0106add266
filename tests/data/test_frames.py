"""Samples are reproducible by their number; the data module deals them out to devices."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from quantsr.data.degradations import Degradation
from quantsr.data.frames import DegradedCrops, FramesDataModule
from quantsr.errors import UserError


def images(*sizes: tuple[int, int]) -> list[tuple[str, torch.Tensor]]:
    """Random (height, width) images."""
    generator = torch.Generator().manual_seed(0)
    return [
        (f"image {i}", torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8))
        for i, size in enumerate(sizes)
    ]


def crops(crop: int | None = 32, random: bool = False, seed: int = 0, scale: int = 4) -> DegradedCrops:
    return DegradedCrops(images((48, 64), (64, 48), (48, 48)), crop, Degradation(scale), seed, random)


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and all(torch.equal(a[key], b[key]) for key in ("lq", "gt"))


class TestDegradedCrops:
    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    @pytest.mark.parametrize("scale", [2, 4], ids=["scale 2", "scale 4"])
    def test_sample(self, random, scale):
        sample = crops(random=random, scale=scale)[0]
        assert sample["name"] == "image 0"
        assert sample["gt"].shape == (3, 32, 32)
        assert sample["lq"].shape == (3, 32 // scale, 32 // scale)
        for image in (sample["lq"], sample["gt"]):
            assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1

    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    def test_equal_seed_and_number_give_equal_samples(self, random):
        assert all(equal(crops(random=random)[number], crops(random=random)[number]) for number in range(6))

    @pytest.mark.parametrize("random", [True, False], ids=["random", "fixed"])
    def test_seed_decides(self, random):
        assert not equal(crops(random=random, seed=0)[0], crops(random=random, seed=1)[0])

    def test_random_visits_of_an_image_differ(self):
        first, later = crops(random=True)[1], crops(random=True)[1 + 3]
        assert first["name"] == later["name"]
        assert not torch.equal(first["gt"], later["gt"])
        assert not torch.equal(first["lq"], later["lq"])

    def test_fixed_visits_of_an_image_are_equal(self):
        assert equal(crops()[1], crops()[1 + 3])

    def test_fixed_crop_is_the_centre(self):
        data = crops()
        assert torch.equal(data[0]["gt"] * 255, data.images[0][1][:, 8:40, 16:48].float())

    def test_random_crops_come_turned_and_flipped_in_all_eight_ways(self):
        [(_, image)] = images((32, 32))
        data = DegradedCrops([("image", image)], 32, Degradation(), random=True)
        seen = {(data[number]["gt"] * 255).byte().numpy().tobytes() for number in range(100)}
        assert len(seen) == 8

    def test_whole_image_is_cut_about_its_centre_to_a_multiple_of_32(self):
        [(name, image)] = images((70, 100))
        sample = DegradedCrops([(name, image)], None, Degradation())[0]
        assert torch.equal(sample["gt"] * 255, image[:, 3:67, 2:98].float())
        assert sample["lq"].shape == (3, 16, 24)

    @pytest.mark.parametrize(
        ("crop", "message"),
        [
            pytest.param(30, "30 pixels does not divide by the scale 4", id="indivisible"),
            pytest.param(0, "0 pixels", id="zero"),
            pytest.param(64, "image 0 is smaller than the crop of 64", id="too large"),
        ],
    )
    def test_impossible_crop_is_refused(self, crop, message):
        with pytest.raises(UserError, match=message):
            crops(crop)

    def test_no_image_is_refused(self):
        with pytest.raises(UserError, match="at least one image"):
            DegradedCrops([], 32, Degradation())


class Module(FramesDataModule):
    """Counts how often its data are read."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.loaded: list[str] = []

    def load_calibration(self) -> Dataset:
        self.loaded.append("calibration")
        return crops(random=True)

    def load_validation(self) -> Dataset:
        self.loaded.append("validation")
        return crops(crop=None)


def names_and_pixels(loader) -> list[tuple[list[str], float]]:
    return [(batch["name"], batch["gt"].sum().item()) for batch in loader]


class TestFramesDataModule:
    def test_training_batches(self):
        module = Module(batch_size=2)
        module.steps = 5
        batches = list(module.train_dataloader())
        assert len(batches) == 5
        assert batches[0]["lq"].shape == (2, 3, 8, 8) and batches[0]["gt"].shape == (2, 3, 32, 32)

    def test_resumed_training_sees_the_rest_of_the_same_data(self):
        whole, rest = Module(), Module()
        whole.steps = rest.steps = 6
        rest.start_step = 4
        assert names_and_pixels(rest.train_dataloader()) == names_and_pixels(whole.train_dataloader())[4:]

    def test_devices_share_the_batch(self):
        names = []
        for rank in range(2):
            module = Module(batch_size=4)
            module.steps = 3
            module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
            names.append([batch["name"] for batch in module.train_dataloader()])
        alone = Module(batch_size=4)
        alone.steps = 3
        for first, second, batch in zip(*names, alone.train_dataloader(), strict=True):
            assert first == batch["name"][0::2] and second == batch["name"][1::2]

    def test_worker_processes_change_nothing(self):
        alone, helped = Module(), Module(num_workers=1)
        alone.steps = helped.steps = 3
        assert names_and_pixels(alone.train_dataloader()) == names_and_pixels(helped.train_dataloader())

    def test_validation_has_all_samples_in_order(self):
        data = Module().validation()
        assert [data[number]["name"] for number in range(len(data))] == ["image 0", "image 1", "image 2"]
        assert data[0]["gt"].shape == (3, 32, 64)

    @pytest.mark.parametrize(
        ("stage", "loaded"),
        [("fit", ["calibration", "validation"]), ("validate", ["validation"]), ("test", ["validation"])],
    )
    def test_setup_reads_once_what_a_stage_needs(self, stage, loaded):
        module = Module()
        module.setup(stage)
        module.setup(stage)
        assert module.loaded == loaded

    def test_summary_is_one_line(self):
        module = Module()
        module.setup("fit")
        module.skipped = [("a.png", "not readable")]
        assert module.summary() == (
            "Module: calibration 3 samples of 8x8 -> 32x32, validation 3 samples of 16x8 -> 64x32, 1 files skipped"
        )
