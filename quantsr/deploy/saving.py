"""Where results of files go: names, and files that appear when they are complete."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from quantsr.data.files import EXTENSIONS
from quantsr.errors import UserError
from quantsr.evaluation.outputs import as_saved

FORMATS: dict[str, dict[str, Any]] = {
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
}
"""How images are written, by ending; the others lose nothing anyway."""


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
    picture.save(unfinished, format=Image.registered_extensions()[suffix], **FORMATS.get(suffix, {}))
    unfinished.replace(path)
    return path


def saved(frames: Iterable[Tensor], paths: Iterable[Path]) -> Iterator[Tensor]:
    """Frames ``(3, h, w)`` as they come, each written to its path on the way; there may be more paths."""
    for frame, path in zip(frames, paths, strict=False):
        save_image(frame, path)
        yield frame


def output_folder(output: Path, source: Path) -> Path:
    """``output`` as a folder, made if it is not there.

    Raises:
        UserError: it is a file, or the folder that the input is in, whose files would be replaced.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: give a folder for the results")
    if output.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f"output={output} is where the input is, and results have the same names: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    return output


def output_file(output: Path, source: Path, endings: tuple[str, ...], name: str) -> Path:
    """The file of one result: ``output`` itself if it ends in one of ``endings``, else ``name`` in that folder.

    Raises:
        UserError: it has another ending, it would replace the input, or :func:`output_folder`'s.
    """
    suffix = output.suffix.lower()
    if suffix not in endings:
        if suffix[1:2].isalpha() and not output.is_dir():
            raise UserError(f"output={output} ends in none of {' '.join(endings)}: give such a name, or a folder")
        return output_folder(output, source) / name
    if output.resolve() == source.resolve():
        raise UserError(f"output={output} is the input itself: give another name")
    output.parent.mkdir(parents=True, exist_ok=True)
    return output
