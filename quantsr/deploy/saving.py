"""Where results of files go: names, and files that appear when they are complete."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.files import EXTENSIONS, Unusable, written
from quantsr.data.video import VIDEO_EXTENSIONS
from quantsr.errors import UserError
from quantsr.evaluation.outputs import as_saved

FORMATS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
}
"""How images are written, by ending; the others lose nothing anyway."""
LONGEST = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Pixels along a side that a format holds, by ending."""


def save_image(image: Tensor, path: Path) -> Path:
    """Write an image ``(3, h, w)`` in [0, 1], rounded to 8 bits, in the format of the name's ending; returns ``path``.

    Raises:
        UserError: the ending is none of an image.
    """
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise UserError(f"images are written as {' '.join(EXTENSIONS)}, not as {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    picture = to_pil_image(as_saved(image))  # It would cut, not round.
    try:
        picture.save(unfinished, format=Image.registered_extensions()[suffix], **FORMATS.get(suffix, {}))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def saved(frames: Iterable[Tensor], paths: Iterable[Path]) -> Iterator[Tensor]:
    """Frames ``(3, h, w)`` as they come, each written to its path on the way; there may be more paths."""
    for frame, path in zip(frames, paths, strict=False):
        save_image(frame, path)
        yield frame


def output_folder(output: Path, source: Path) -> Path:
    """``output`` as a folder of several results, made if it is not there.

    Raises:
        UserError: it is a file or named like one, it is the input, whose files would be replaced, or it takes no files.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder for the results")
    if output.suffix.lower() in (*EXTENSIONS, *VIDEO_EXTENSIONS) and not output.is_dir():
        raise UserError(f"output={output} is named like a file, and there are several results: give a folder")
    if output.resolve() == source.resolve():
        raise UserError(f"output={output} is where the input is, and results have the same names: give another folder")
    return writable_folder(output)


def output_file(output: Path, source: Path, endings: tuple[str, ...], name: str) -> Path:
    """The file of one result: ``output`` itself if it ends in one of ``endings``, else ``name`` in that folder.

    Raises:
        UserError: it has another ending, it would replace the input or a folder, or its folder takes no files.
    """
    suffix = output.suffix.lower()
    if suffix in endings:
        if output.resolve() == source.resolve():
            raise UserError(f"output={output} is the input itself: give another name")
        return in_writable_folder(output)
    if suffix[1:2].isalpha() and not output.is_dir():
        raise UserError(f"output={output} ends in none of {' '.join(endings)}: give such a name, or a folder")
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder for the results")
    if (output / name).resolve() == source.resolve():
        raise UserError(f"output={output} is where the input is, and results have the same names: give another folder")
    return in_writable_folder(output / name)


def writable_folder(folder: Path) -> Path:
    """``folder``, made if it is not there.

    Raises:
        UserError: it cannot be made, or takes no files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written into a folder {folder}: {error.strerror or error}") from error
    return folder


def in_writable_folder(path: Path) -> Path:
    """``path``, its folder made if it is not there; errors of :func:`free_file` and :func:`writable_folder`."""
    writable_folder(free_file(path).parent)
    return path


def free_file(path: Path) -> Path:
    """``path``.

    Raises:
        UserError: there is a folder of that name.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a result would have that name: give another output=")
    return path


def check_fits(size: tuple[int, int], scale: int, path: Path) -> None:
    """Refuse an image (height, width) whose result the format of ``path`` does not hold, with Unusable."""
    large, suffix = (scale * size[0], scale * size[1]), path.suffix.lower()
    if max(large) > LONGEST.get(suffix, max(large)):
        raise Unusable(f"of {written(large)} pixels once upscaled, and {suffix} holds {LONGEST[suffix]} along a side")
