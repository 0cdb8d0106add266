"""Images on disk: one file, or a folder in which some files may be broken."""

import logging
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from quantsr.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")

NamedImage = tuple[str, Tensor]
NamedPath = tuple[str, Path]
Skipped = tuple[str, str]


DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Pillow reports a broken file as any of these, depending on the format's decoder."""
CROPS = 32
"""Crops of a multiple of this side suit every teacher."""
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""The EXIF tag that says how the camera was held, and its values for a quarter turn."""


class Unusable(Exception):
    """Why an image file is left out."""


def read_image(path: str | Path) -> Tensor:
    """Read an image file as RGB.

    Returns:
        (3, H, W) uint8; grayscale is repeated over the channels, transparency dropped, 16-bit gray reduced to
        8 bits.

    Raises:
        OSError: if the file is missing or is no readable image.
        ValueError: if it holds numbers of 32 bits, as some TIFF files do.
    """
    with Image.open(path) as file:
        return rgb_pixels(file)


def rgb_pixels(image: Image.Image) -> Tensor:
    """The pixels of an image as :func:`read_image` returns them.

    Raises:
        ValueError: numbers of 32 bits, or another mode that has no way to RGB.
    """
    check_mode(image)
    # Cameras store a portrait as a landscape with a note to turn it.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    pixels = np.array(image.convert("RGB"))
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w").contiguous()


def check_mode(image: Image.Image) -> None:
    """Refuse numbers of 32 bits with a ValueError: Pillow would cut them off at 255."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no range that is known: convert it to RGB or L first")


def list_images(root: str | Path, pattern: str = "*") -> list[Path]:
    """The image files directly inside a folder whose stem matches a glob pattern, `img_2` before `img_10`.

    Hidden files, such as the `._img_2.png` that macOS leaves on other disks, are none.

    Raises:
        UserError: if the folder is missing or no image file in it matches.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"No image folder at {root.absolute()}: put the images there or give the folder that has them.")
    paths = [
        path
        for path in root.iterdir()
        if not path.name.startswith(".")
        and path.suffix.lower() in EXTENSIONS
        and fnmatchcase(path.stem, pattern)
        and path.is_file()
    ]
    if not paths:
        matching = "" if pattern == "*" else f" whose name matches {pattern!r}"
        raise UserError(
            f"No image{matching} in {root.absolute()}: looked for files ending in {' '.join(EXTENSIONS)}, "
            "not in subfolders."
        )
    return sorted(paths, key=natural_key)


def list_named(root: str | Path, pattern: str = "*") -> list[NamedPath]:
    """`list_images` with their stems, which name what is made of them.

    Raises:
        UserError: also if two have the same one.
    """
    return named_once([(path.stem, path) for path in list_images(root, pattern)])


def named_once(named: list[NamedPath]) -> list[NamedPath]:
    """The same files. Two of one name are refused with a UserError: the results of one would replace the other's."""
    seen: dict[str, Path] = {}
    for name, path in named:
        other = seen.setdefault(name, path)
        if other != path:
            where = path.parent.absolute()
            raise UserError(f"{other.name} and {path.name} in {where} have the same name: keep one.")
    return named


def read_usable(path: Path, minimum: int = 1) -> Tensor:
    """`read_image`, with one exception for everything that can be wrong with a file's content.

    Raises:
        Unusable: if the file is broken or the image has a side under `minimum` pixels.
    """
    try:
        image = read_image(path)
    except DAMAGE as error:
        raise Unusable(f"not readable ({error})") from error
    check_side(image.shape[-2:], minimum)
    return image


def read_one(path: Path) -> Tensor:
    """`read_image` of a file that cannot be left out.

    Raises:
        UserError: if it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"No image file at {path.absolute()}.")
    try:
        return read_usable(path)
    except Unusable as reason:
        raise UserError(f"The image {path.absolute()} is {reason}.") from reason


def image_size(path: Path, checksums: bool = False) -> tuple[int, int]:
    """(height, width) as `read_image` gives them, from the header, without decoding.

    Args:
        path: the file.
        checksums: compare those of the whole file, which PNG has: reads it, and finds one that ends early.

    Raises:
        Unusable: if the file is broken where that shows.
    """
    try:
        with Image.open(path) as file:
            check_mode(file)
            width, height = file.size
            # Of a PNG without the tag in front, Pillow would decode all to look for it behind.
            tags = file.getexif() if file.format != "PNG" or "exif" in file.info else {}
            # The size of a TIFF is given upright.
            turned = file.format != "TIFF" and tags.get(ORIENTATION) in TURNED
            if checksums:
                file.verify()
    except DAMAGE as error:
        raise Unusable(f"not readable ({error})") from error
    return (width, height) if turned else (height, width)


def check_side(size: tuple[int, int], minimum: int, scale: int = 1) -> None:
    """Refuse (height, width) with a side under `minimum` pixels, with Unusable.

    Args:
        size: of the image.
        minimum: shortest side that it must have.
        scale: how many times larger the image is that crops are counted in.
    """
    if min(size) < minimum:
        raise Unusable(f"{written(size)} pixels, smaller than {minimum}{crop_for(scale * min(size))}")


def crop_for(side: int) -> str:
    """The option that makes crops fit into an image with this shorter side; nothing if no crop does."""
    crop = side // CROPS * CROPS
    return f" (data.crop={crop} would fit)" if crop else ""


def check_ratio(lq: tuple[int, int], gt: tuple[int, int], scale: int) -> None:
    """Refuse (height, width) of a clean image that is not `scale` times the low-quality one's, with Unusable."""
    if tuple(gt) != tuple(scale * side for side in lq):
        raise Unusable(f"gt of {written(gt)} pixels is not {scale} times the size of lq, {written(lq)}")


def written(size: tuple[int, int]) -> str:
    """(height, width) as people write it, width first: `128x96`."""
    return f"{size[1]}x{size[0]}"


def read_images(paths: Sequence[Path], minimum: int) -> tuple[list[NamedImage], list[Skipped]]:
    """Read one file or more, leaving out the broken ones and those with a side under `minimum` pixels.

    Returns:
        (stem, (3, H, W) uint8) of each image read, and (file name, reason) of each file left out, which is
        also logged.

    Raises:
        UserError: if nothing is left.
    """
    images, skipped = [], []
    for path in paths:
        try:
            images.append((path.stem, read_usable(path, minimum)))
        except Unusable as reason:
            skipped.append((path.name, str(reason)))
    warn_skipped(skipped)
    if not images:
        name, reason = skipped[0]
        raise UserError(
            f"None of the {len(paths)} image files looked at in {paths[0].parent.absolute()} can be used: "
            f"{name} is {reason}."
        )
    return images, skipped


def read_folder(root: str | Path, minimum: int = 1, pattern: str = "*") -> tuple[list[NamedImage], list[Skipped]]:
    """`read_images` of `list_images`."""
    return read_images(list_images(root, pattern), minimum)


def stamp(paths: Iterable[Path]) -> str:
    """A digest of where files and the files of folders are, how large, and when they were last changed."""
    digest = sha256()
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            stat = file.stat()
            digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def warn_skipped(skipped: list[Skipped], shown: int = 10) -> None:
    """Name the first few skipped files in the log, and count the rest."""
    for name, reason in skipped[:shown]:
        log.warning("skipped %s: %s", name, reason)
    if len(skipped) > shown:
        log.warning("skipped %d more files", len(skipped) - shown)


def natural_key(path: Path) -> list:
    """Sorting key that compares runs of digits as numbers."""
    return [(int(part), part) if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]
