"""A folder of images serves to train a teacher, to calibrate a student and to measure."""

import pytest
import torch

from quantsr.data.images import ImagesDataModule
from quantsr.errors import UserError


def names(data) -> set[str]:
    return {data[i]["name"] for i in range(len(data))}


@pytest.fixture
def folder(tmp_path, save_image):
    """Six images to train on and two to test on, of 64x96 pixels."""
    for i in range(8):
        save_image(tmp_path / f"{'train' if i < 6 else 'test'}_{i}.png", width=96, seed=i)
    return tmp_path


def test_patterns_divide_a_folder(folder):
    module = ImagesDataModule(folder, "train_*", validation_pattern="test_*", crop=32)
    assert names(module.calibration()) == {f"train_{i}" for i in range(6)}
    assert names(module.validation()) == {"test_6", "test_7"}


def test_validation_images_never_calibrate(folder):
    module = ImagesDataModule(folder, validation_pattern="test_*", crop=32)
    assert names(module.calibration()) == {f"train_{i}" for i in range(6)}


def test_second_folder_validates(folder, tmp_path, save_image):
    save_image(tmp_path / "other" / "held_out.png")
    module = ImagesDataModule(folder, validation_root=tmp_path / "other", crop=32)
    assert len(module.calibration()) == 8
    assert names(module.validation()) == {"held_out"}


def test_share_divides_a_folder_without_overlap(folder):
    module = ImagesDataModule(folder, validation_share=0.25, crop=32)
    calibration, validation = names(module.calibration()), names(module.validation())
    assert len(calibration) == 6 and len(validation) == 2
    assert not calibration & validation


def test_whole_folder_can_be_measured(folder):
    module = ImagesDataModule(folder, validation_share=1)
    module.setup("validate")
    assert len(module.validation()) == 8


@pytest.mark.parametrize("options", [{}, {"validation_pattern": "test_*"}], ids=["share", "pattern"])
def test_two_images_of_one_name_are_refused(folder, save_image, options):
    save_image(folder / "test_6.bmp")
    with pytest.raises(UserError, match=r"test_6\.bmp and test_6\.png in .* have the same name: keep one"):
        ImagesDataModule(folder, **options).setup("fit")


def test_nothing_left_to_calibrate_is_said(folder):
    with pytest.raises(UserError, match="left for calibration: change validation_share"):
        ImagesDataModule(folder, validation_share=1).setup("fit")


def test_validation_is_whole_or_centre_cropped(folder):
    whole, crop = (ImagesDataModule(folder, validation_crop=side).validation()[0] for side in (None, 32))
    assert whole["gt"].shape == (3, 64, 96) and whole["lq"].shape == (3, 16, 24)
    assert torch.equal(crop["gt"], whole["gt"][:, 16:48, 32:64])


def test_only_random_crops_change_between_visits(folder):
    for random_crops in (True, False):
        data = ImagesDataModule(folder, crop=32, random_crops=random_crops).calibration()
        assert torch.equal(data[0]["gt"], data[len(data)]["gt"]) is not random_crops
        assert data.random is random_crops


def test_broken_and_small_images_are_counted(folder, save_image):
    save_image(folder / "train_small.png", width=31)
    (folder / "test_broken.png").write_text("no image")
    module = ImagesDataModule(folder, "train_*", validation_pattern="test_*", crop=32)
    module.setup("fit")
    assert [name for name, _ in module.skipped] == ["train_small.png", "test_broken.png"]
    assert module.summary().endswith("2 files skipped")


def test_real_photographs_train_a_teacher(shared_data):
    module = ImagesDataModule(
        shared_data / "photos", "train_10*", validation_pattern="test_10*", crop=128, random_crops=True
    )
    module.steps = 2
    for batch in module.train_dataloader():
        assert batch["lq"].shape == (4, 3, 32, 32) and batch["gt"].shape == (4, 3, 128, 128)
    held_out = module.validation()
    assert {tuple(held_out[number]["gt"].shape[-2:]) for number in range(len(held_out))} == {(320, 480), (480, 320)}
