"""The packaged photographs are there on every machine, divided without overlap."""

import socket
from pathlib import Path

import pytest

from quantsr.data import photos
from quantsr.data.photos import PhotosDataModule, grid, packaged_photos
from quantsr.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the packaged photographs must not need the network")

    monkeypatch.setattr(socket, "socket", refuse)


def names(data) -> list[str]:
    return [data[i]["name"] for i in range(len(data))]


@pytest.mark.usefixtures("no_network")
def test_six_color_photographs_come_with_the_packages():
    sizes = {name: tuple(image.shape) for name, image in packaged_photos()}
    assert sizes == {
        "astronaut": (3, 512, 512),
        "chelsea": (3, 300, 451),
        "coffee": (3, 400, 600),
        "rocket": (3, 427, 640),
        "china": (3, 427, 640),
        "flower": (3, 427, 640),
    }


def test_default_gives_20_crops_to_calibration_and_10_to_validation():
    module = PhotosDataModule()
    module.setup("fit")
    assert len(module.calibration()) == 20 and len(module.validation()) == 10
    assert module.calibration()[0]["lq"].shape == (3, 48, 48)
    assert module.calibration()[0]["gt"].shape == (3, 192, 192)


@pytest.mark.parametrize("seed", [0, 1, 2], ids=lambda seed: f"seed {seed}")
def test_parts_do_not_overlap_and_every_photo_gives_to_both(seed):
    module = PhotosDataModule(seed=seed)
    calibration, validation = set(names(module.calibration())), set(names(module.validation()))
    assert not calibration & validation
    assert {name.split("_")[0] for name in calibration} == {name.split("_")[0] for name in validation}


def test_grid_crops_do_not_overlap():
    _, image = packaged_photos()[1]
    cells = grid("chelsea", image, crop=96)
    assert [name for name, _ in cells[:5]] == [
        "chelsea_0_0",
        "chelsea_0_1",
        "chelsea_0_2",
        "chelsea_0_3",
        "chelsea_1_0",
    ]
    # The crops are views of the photo: their places in its memory tell whether they overlap.
    starts = [divmod(cell.storage_offset(), image.shape[-1]) for _, cell in cells]
    assert starts == [(6 + 96 * row, 33 + 96 * column) for row in range(3) for column in range(4)]


def test_all_crops_may_calibrate():
    module = PhotosDataModule(validation_share=0)
    assert len(module.calibration()) == 30
    with pytest.raises(UserError, match=r"is left for validation: change .* or validation_share \(0\)"):
        module.validation()


def test_too_large_a_crop_is_refused():
    with pytest.raises(UserError, match=r"is left for calibration: change crop \(800 pixels\)"):
        PhotosDataModule(crop=800).calibration()


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(photos, "find_spec", lambda module: None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        packaged_photos()
