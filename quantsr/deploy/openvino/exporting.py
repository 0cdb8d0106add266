"""A student's networks to OpenVINO models in a folder."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from quantsr import __version__
from quantsr.deploy.artefact import artefact_folder, load_student
from quantsr.deploy.exported import CONFIG, FOLDER, digest, size_of
from quantsr.deploy.openvino import attention, layer, mgldvsr, one_step
from quantsr.deploy.openvino.convert import convert
from quantsr.deploy.openvino.packed import shorten
from quantsr.errors import UserError
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.one_step import OneStepTeacher

EXAMPLE = 16
"""Side in latent pixels of what networks are traced with; sizes stay open."""


@dataclass(frozen=True)
class Floating:
    """A quantized module whose product stays in floating point.

    Attributes:
        name: of the module.
        why: in words.
    """

    name: str
    why: str


KINDS: dict[str, Any] = {OneStepTeacher.kind: one_step, MGLDVSRTeacher.kind: mgldvsr}
"""Modules by the kind of model that they take apart: ``NETWORKS`` by name, ``example`` inputs, and ``substitute``."""


def export(folder: str | Path) -> tuple[Path, list[Floating], dict[str, int]]:
    """Write the OpenVINO models of an artefact into it.

    Args:
        folder: an artefact, or the run that holds one.

    Returns:
        The new folder, the modules whose products stay in floating point, and the bytes of every network.

    Raises:
        UserError: no artefact there, or one that cannot be expressed: the sentence says why.
    """
    student = load_student(folder)
    floating = check(student)
    target = artefact_folder(folder) / FOLDER
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    sizes = {}
    for part, model in models(student):
        ov.save_model(model, unfinished / f"{part}.xml", compress_to_fp16=False)
        sizes[part] = size_of(unfinished, part)
    about = {
        "quantsr": __version__,
        "openvino": ov.__version__,
        "student": digest(target.parent),
        "floating": [asdict(f) for f in floating],
        "bytes": sizes,
    }
    (unfinished / CONFIG).write_text(json.dumps(about, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target, floating, sizes


def models(student: Teacher) -> Iterator[tuple[str, ov.Model]]:
    """The networks, one after the other."""
    student.float()
    kind = KINDS[student.kind]
    for part, network in kind.NETWORKS.items():
        model = convert(network(student).eval(), *kind.example(student, part, EXAMPLE))
        shorten(model)
        yield part, model


def check(student: Teacher) -> list[Floating]:
    """What of a student cannot be integers.

    Raises:
        UserError: a student that cannot be expressed at all.
    """
    if student.kind not in KINDS:
        raise UserError(
            f"runtime=openvino takes models of {list(KINDS)}, this one is {student.kind}: use runtime=torch"
        )
    floating = []
    for name, module in student.named_modules():
        if isinstance(module, FoldedLayer):
            if module.recipe.token_split:
                raise UserError(f"runtime=openvino cannot express the token split of {name}: use runtime=torch")
            if (why := layer.why_not(module)) is not None:
                floating.append(Floating(name, why))
        elif isinstance(module, QuantizedAttention) and (why := attention.why_not(module)) is not None:
            floating.append(Floating(name, why))
    return floating
