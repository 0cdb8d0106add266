"""Runtime ``openvino``: integer products on a CPU, see :mod:`quantsr.deploy.openvino`."""

from importlib.util import find_spec
from pathlib import Path

import torch

from quantsr.deploy.artefact import read_config
from quantsr.deploy.exported import is_exported
from quantsr.teachers.base import Teacher


def available(folder: Path, device: str) -> str | None:
    """Why the package, ``device`` or the model of ``folder`` does not allow it; None if they do."""
    if torch.device(device).type != "cpu":
        return f"it runs on a CPU, not on {device}."
    if find_spec("openvino") is None:
        return "the package openvino is missing: pip install 'quantsr[openvino]'."
    if any(recipe.get("token_split") for recipe in read_config(folder)["recipes"]):
        return "it cannot express the token split of this student's layers."
    return None


def ready(folder: Path) -> bool:
    """Whether ``export.py`` has written the models of this student."""
    return is_exported(folder)


def load(folder: Path, device: str) -> Teacher:
    """The student, from the models that ``export.py`` wrote, else converted now (seconds; minutes at full size)."""
    from quantsr.deploy import openvino

    return openvino.load(folder)
