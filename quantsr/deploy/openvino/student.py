"""A student whose networks are OpenVINO models, with everything around them as it was."""

from pathlib import Path
from typing import TypeVar

import openvino as ov
import torch

from quantsr.deploy.artefact import WEIGHTS, artefact_folder, load_student, read_config, read_tensor
from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.exporting import FOLDER, KINDS, check, models
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import build_teacher

T = TypeVar("T", bound=Teacher)


def load(folder: str | Path, precision: str = "auto") -> Teacher:
    """The student of an artefact, with integer products: from its exported models, or converted here.

    Args:
        folder: an artefact, or the run that holds one.
        precision: of what is not quantized, see :class:`quantsr.deploy.openvino.networks.CompiledNetwork`.

    Raises:
        UserError: no artefact there, or one that cannot be expressed.
    """
    exported = artefact_folder(folder) / FOLDER
    if not exported.is_dir():
        student = load_student(folder)
        check(student)
        return with_networks(student, dict(models(student)), precision)
    with torch.device("meta"):
        student = build_teacher(**read_config(folder)["model"])
    student.prompt_embedding = read_tensor(artefact_folder(folder) / WEIGHTS, "prompt_embedding").float()
    found = {part: core().read_model(exported / f"{part}.xml") for part in KINDS[student.kind].NETWORKS}
    return with_networks(student, found, precision)


def with_networks(student: T, found: dict[str, ov.Model], precision: str) -> T:
    """Put the models of :func:`quantsr.deploy.openvino.exporting.models` in the place of a student's networks."""
    KINDS[student.kind].substitute(student, found, precision)
    return student.freeze()
