"""Calibration on one data set, measurement on another."""

import pytest

from quantsr.data.clips import ClipsDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.separate import SeparateDataModule
from quantsr.errors import UserError
from tests.conftest import picture


@pytest.fixture
def benchmark_folder(tmp_path):
    folder = tmp_path / "benchmark"
    folder.mkdir()
    for number in range(2):
        picture(20 + number).save(folder / f"held_out_{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def data(image_folder, benchmark_folder):
    calibration = ImagesDataModule(image_folder, validation_share=0, crop=32, batch_size=3, seed=5)
    return SeparateDataModule(calibration, ImagesDataModule(benchmark_folder, validation_share=1))


def test_samples_are_those_of_either(data):
    data.setup("fit")
    assert len(data.calibration()) == 8
    validation = data.validation()
    assert {validation[i]["name"] for i in range(len(validation))} == {"held_out_0", "held_out_1"}


def test_batches_are_those_of_the_calibration_set(data):
    assert (data.batch_size, data.seed, data.frames) == (3, 5, 1)
    data.steps = 2
    assert [len(batch["lq"]) for batch in data.train_dataloader()] == [3, 3]


def test_files_that_were_skipped_are_counted(data):
    data.setup("fit")
    assert [name.removesuffix(".png") for name, _ in data.skipped] == ["broken"]
    assert "1 files skipped" in data.summary()


def test_a_file_in_both_is_refused(image_folder):
    both = [ImagesDataModule(image_folder, validation_share=share, crop=32) for share in (0.5, 1)]
    with pytest.raises(
        UserError, match=r"^4 files of data\.validation are in data\.calibration too, the first /.*png: "
    ):
        SeparateDataModule(*both).setup("fit")


def test_images_and_clips_do_not_go_together(tmp_path):
    with pytest.raises(UserError, match=r"data\.calibration is of images, data\.validation of clips"):
        SeparateDataModule(ImagesDataModule(tmp_path), ClipsDataModule(tmp_path))
