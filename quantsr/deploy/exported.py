"""Models that ``export.py`` wrote beside an artefact: all of them, and of its weights? Told without a heavy import."""

import json
import shutil
from hashlib import file_digest
from pathlib import Path

from quantsr.deploy.artefact import WEIGHTS

FOLDER, CONFIG = "openvino", "openvino.json"


def is_exported(artefact: Path) -> bool:
    """Whether the models of an artefact folder are there, whole, and made of its weights.

    Exports of before they had a digest are taken to be made of them.
    """
    folder = artefact / FOLDER
    try:
        about = json.loads((folder / CONFIG).read_text())
        whole = all(size_of(folder, part) == size for part, size in about["bytes"].items())
        return whole and about.get("student") in (None, digest(artefact))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def remove_exported(artefact: Path) -> None:
    """Remove what ``export.py`` wrote to an artefact folder; a folder of that name with anything else in it stays."""
    if (artefact / FOLDER / CONFIG).is_file():
        shutil.rmtree(artefact / FOLDER)


def size_of(folder: Path, part: str) -> int:
    """Bytes of both files of a network."""
    return sum((folder / f"{part}.{ending}").stat().st_size for ending in ("xml", "bin"))


def digest(artefact: Path) -> str:
    """Of an artefact's weights."""
    with open(artefact / WEIGHTS, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
