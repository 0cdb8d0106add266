"""Images are read as RGB whatever the file; what cannot be read is named, not fatal."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from quantsr.data.files import Unusable, check_side, image_size, list_images, read_folder, read_image
from quantsr.errors import UserError


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "bmp", "webp", "tif", "tiff", "PNG"])
def test_every_format_is_read(tmp_path, save_image, extension):
    save_image(tmp_path / f"a.{extension}", width=20, height=10)
    [(name, image)], skipped = read_folder(tmp_path)
    assert name == "a" and not skipped
    assert image.shape == (3, 10, 20) and image.dtype == torch.uint8


@pytest.mark.parametrize(
    ("mode", "pixel", "rgb"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 10, (10, 10, 10)),
        ("LA", (10, 128), (10, 10, 10)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
    ],
    ids=["color", "gray", "gray with alpha", "color with alpha", "black and white"],
)
def test_modes_become_rgb(tmp_path, mode, pixel, rgb):
    Image.new(mode, (4, 4), pixel).save(tmp_path / "a.png")
    assert tuple(read_image(tmp_path / "a.png")[:, 0, 0].tolist()) == rgb


def test_16_bit_gray_is_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 40 * 256, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").unique().tolist() == [40]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_32_bits_are_left_out_instead_of_cut_off(tmp_path, save_image, mode):
    save_image(tmp_path / "good.png")
    Image.new(mode, (64, 64), 300).save(tmp_path / "a.tif")
    _, skipped = read_folder(tmp_path)
    reason = f"mode {mode} has no range that is known: convert it to RGB or L first"
    assert skipped == [("a.tif", f"not readable ({reason})")]
    with pytest.raises(Unusable, match=f"mode {mode} has no range"):
        image_size(tmp_path / "a.tif")


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_portrait_stored_lying_is_turned_upright(tmp_path, extension):
    exif, path = Image.Exif(), tmp_path / f"a.{extension}"
    exif[0x0112] = 6  # Orientation: turn by 90 degrees.
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_image(path).shape == (3, 20, 10) and image_size(path) == (20, 10)


def test_order_is_natural(tmp_path, save_image):
    for name in ("img_10", "img_2", "img_1"):
        save_image(tmp_path / f"{name}.png")
    assert [path.stem for path in list_images(tmp_path)] == ["img_1", "img_2", "img_10"]


def test_pattern_chooses_by_stem_and_other_files_are_no_images(tmp_path, save_image):
    save_image(tmp_path / "train_1.png")
    save_image(tmp_path / "test_1.png")
    (tmp_path / "train_notes.txt").write_text("no image")
    assert [path.name for path in list_images(tmp_path, "train_*")] == ["train_1.png"]


def test_hidden_files_are_no_images(tmp_path, save_image):
    save_image(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"what macOS knows of a.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


def test_broken_and_small_files_are_skipped_by_name(tmp_path, save_image, caplog):
    save_image(tmp_path / "good.png")
    save_image(tmp_path / "small.png", width=16)
    (tmp_path / "text.png").write_text("no image")
    whole = save_image(tmp_path / "cut_off.jpg").read_bytes()
    (tmp_path / "cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, logger="quantsr"):
        images, skipped = read_folder(tmp_path, minimum=32)
    assert [name for name, _ in images] == ["good"]
    assert [name for name, _ in skipped] == ["cut_off.jpg", "small.png", "text.png"]
    assert "16x64 pixels, smaller than 32" in dict(skipped)["small.png"]
    assert all(name in caplog.text for name, _ in skipped)


@pytest.mark.parametrize(
    ("size", "scale", "crop"), [((192, 191), 1, 160), ((33, 500), 1, 32), ((40, 47), 4, 160)], ids=str
)
def test_the_crop_that_would_fit_is_named(size, scale, crop):
    with pytest.raises(Unusable, match=rf"smaller than 192 \(data\.crop={crop} would fit\)$"):
        check_side(size, 192, scale)


def test_no_crop_is_named_where_none_would_fit():
    with pytest.raises(Unusable, match=r"31x40 pixels, smaller than 192$"):
        check_side((40, 31), 192)


def test_many_skipped_files_are_counted_not_listed(tmp_path, save_image, caplog):
    save_image(tmp_path / "good.png")
    for number in range(15):
        (tmp_path / f"{number}.png").write_text("no image")
    _, skipped = read_folder(tmp_path)
    assert len(skipped) == 15
    assert len(caplog.records) == 11 and "5 more" in caplog.text


def test_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
        read_folder(tmp_path / "nowhere")


def test_empty_folder_says_what_it_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"\.png .*subfolders"):
        read_folder(tmp_path)


def test_folder_without_a_usable_image_is_an_error(tmp_path, save_image):
    save_image(tmp_path / "small.png", width=8, height=8)
    with pytest.raises(UserError, match=r"small\.png is 8x8 pixels"):
        read_folder(tmp_path, minimum=32)
