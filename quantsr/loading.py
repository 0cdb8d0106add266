"""Checkpoints and artefacts to models."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from quantsr.deploy.artefact import load_student, read_config
from quantsr.errors import UserError
from quantsr.methods.quantization import QuantizationMethod
from quantsr.metrics.operations import without_weights
from quantsr.quant.calibrate import quantized_modules, uncalibrated
from quantsr.quant.folded import fold
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import load_teacher
from quantsr.teachers.one_step import OneStepTeacher


def build_teacher(cfg: DictConfig) -> Teacher:
    """The teacher of a configuration, from plain lists and dicts: its arguments are written to its file."""
    return instantiate(cfg.teacher, _convert_="all")


def build_architecture(cfg: DictConfig) -> Teacher:
    """The same on the ``meta`` device, where it takes no memory.

    A module that loads a teacher of full size has a function ``architecture`` beside, which takes the same arguments
    and reads no file: those that say where files are may be missing. A teacher of any other module is loaded, and its
    weights are let go.
    """
    module, _, _ = cfg.teacher._target_.rpartition(".")
    architecture = getattr(import_module(module), "architecture", None)
    if architecture is None:
        return without_weights(build_teacher(cfg)).freeze()
    given = [key for key in cfg.teacher if key != "_target_" and not OmegaConf.is_missing(cfg.teacher, key)]
    config = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["teacher", "seed"]), resolve=True)["teacher"]
    with torch.device("meta"):
        teacher = architecture(**{key: config[key] for key in given})
    return teacher.to("meta").freeze()  # Constants that follow from the arguments are made elsewhere.


def load_models(artefact: str | Path, teacher: str | None = None, tile: int | None = None) -> tuple[Teacher, Teacher]:
    """Student and teacher of an artefact folder, a run folder, or a checkpoint in a run folder.

    Args:
        artefact: one of these.
        teacher: weights of the teacher; None takes the one that the artefact names. A checkpoint has its own.
        tile: side of the tiles of large images, in output pixels; None leaves it as the models have it.

    Raises:
        UserError: there is nothing of the kind, it cannot be read, or its tiles cannot be of that size.
    """
    path = Path(artefact).expanduser()
    if path.suffix == ".ckpt":
        models = load_checkpoint_models(path)
    else:
        student = load_student(path)
        models = student, teacher_of(read_config(path)) if teacher is None else load_teacher(teacher)
    for model in models if tile is not None else ():
        if not isinstance(model, OneStepTeacher):
            raise UserError("tile sets the tiles of one-step image models, and this model is of another kind")
        model.tile = tile
    return models


def teacher_of(config: dict[str, Any]) -> Teacher:
    """The teacher that an artefact names: by its weights, or by the files of a loader of full-size teachers.

    Raises:
        UserError: it names none of :mod:`quantsr.teachers`; code elsewhere is not called by a file.
    """
    if config["teacher"] is not None:
        return load_teacher(config["teacher"])
    node = config.get("config", {}).get("teacher", {})
    if not str(node.get("_target_")).startswith("quantsr.teachers."):
        raise UserError("the artefact does not say which teacher it was made of: give teacher=WEIGHTS")
    return instantiate(node, _convert_="all")


def load_checkpoint_models(path: Path) -> tuple[Teacher, Teacher]:
    """Student and teacher of a checkpoint, built from the configuration in its run folder."""
    checkpoint = read_checkpoint(path)
    config = path.parent.parent / "config.yaml"
    if not config.is_file():
        raise UserError(f"a checkpoint is read with its run's configuration, which is not at {config}")
    cfg = OmegaConf.load(config)
    teacher = build_teacher(cfg)
    method = instantiate(cfg.method, teacher=teacher)
    if not isinstance(method, QuantizationMethod):
        raise UserError(f"{path} holds no student but a teacher in training: its run leaves a teacher.safetensors")
    method.on_load_checkpoint(checkpoint)
    method.load_state_dict(checkpoint["state_dict"])
    if missing := uncalibrated(quantized_modules(method.student)):
        raise UserError(
            f"{path} is from the beginning of its run, when {len(missing)} layers had no ranges yet: take a later one"
        )
    return fold(method.student).freeze(), teacher


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint at ``path``.

    Raises:
        UserError: there is none, it cannot be read, or it is not one of ours.
    """
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at ckpt_path={path}: a run keeps its last one in RUN/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint ({type(error).__name__})") from error
    if "quantsr" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of quantsr: it has no entry 'quantsr'")
    return checkpoint
