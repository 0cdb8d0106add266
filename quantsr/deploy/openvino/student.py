"""A student whose networks are OpenVINO models, with everything around them as it was."""

from pathlib import Path
from typing import TypeVar

import openvino as ov
import torch

from quantsr.deploy.artefact import WEIGHTS, artefact_folder, load_student, read_config, read_tensor
from quantsr.deploy.exported import FOLDER, is_exported
from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.exporting import KINDS, check, models
from quantsr.errors import UserError
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import build_teacher

T = TypeVar("T", bound=Teacher)


def load(folder: str | Path, precision: str = "auto") -> Teacher:
    """The student of an artefact, with integer products: from its exported models, or converted here.

    Args:
        folder: an artefact, or the run that holds one.
        precision: of what is not quantized, see :class:`quantsr.deploy.openvino.networks.CompiledNetwork`.

    Raises:
        UserError: no artefact there, one that cannot be expressed, or exported models that cannot be read.
    """
    artefact = artefact_folder(folder)
    if not is_exported(artefact):
        student = load_student(folder)
        check(student)
        return with_networks(student, dict(models(student)), precision)
    with torch.device("meta"):
        student = build_teacher(**read_config(folder)["model"])
    student.prompt_embedding = read_tensor(artefact / WEIGHTS, "prompt_embedding").float()
    found = {part: _read(artefact / FOLDER / f"{part}.xml") for part in KINDS[student.kind].NETWORKS}
    return with_networks(student, found, precision)


def _read(path: Path) -> ov.Model:
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"the exported model {path} cannot be read: run export.py again") from error


def with_networks(student: T, found: dict[str, ov.Model], precision: str) -> T:
    """Put the models of :func:`quantsr.deploy.openvino.exporting.models` in the place of a student's networks."""
    KINDS[student.kind].substitute(student, found, precision)
    return student.freeze()
