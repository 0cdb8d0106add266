"""A student whose networks are OpenVINO models, with everything around them as it was."""

from pathlib import Path

import openvino as ov
import torch

from quantsr.deploy.artefact import WEIGHTS, artefact_folder, load_student, read_config, read_tensor
from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.exporting import FOLDER, NETWORKS, check, models
from quantsr.deploy.openvino.networks import CompiledNetwork
from quantsr.teachers.files import build_teacher
from quantsr.teachers.one_step import OneStepTeacher


def load(folder: str | Path, precision: str = "auto") -> OneStepTeacher:
    """The student of an artefact, with integer products: from its exported models, or converted here.

    Args:
        folder: an artefact, or the run that holds one.
        precision: of what is not quantized, see :class:`CompiledNetwork`.

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
    return with_networks(student, {part: core().read_model(exported / f"{part}.xml") for part in NETWORKS}, precision)


def with_networks(student: OneStepTeacher, found: dict[str, ov.Model], precision: str) -> OneStepTeacher:
    """Put the models of :func:`quantsr.deploy.openvino.exporting.models` in the place of a student's networks."""
    student.vae.encoder = CompiledNetwork(found["encoder"], precision)
    student.vae.decoder = CompiledNetwork(found["decoder"], precision)
    student.vae.quant_conv = student.vae.post_quant_conv = None  # They are part of the models.
    student.unet = CompiledNetwork(found["denoiser"], precision, student.unet.config, wrap=True)
    return student.freeze()
