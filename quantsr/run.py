"""The commands: ``train(cfg)`` and ``evaluate(cfg)`` instantiate, run and report.

Only this module sees Hydra's configuration.
"""

import csv
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torchvision.transforms.functional import to_pil_image

from quantsr.callbacks.interrupt import SaveOnInterrupt
from quantsr.callbacks.progress import StageProgress
from quantsr.data.frames import FramesDataModule
from quantsr.data.pairs import match_folders
from quantsr.data.sampling import check_batch_size
from quantsr.data.trajectories import Trajectories, record
from quantsr.data.video import open_frames, write_video
from quantsr.deploy.artefact import load_student, read_config, save_student
from quantsr.errors import UserError
from quantsr.evaluation import (
    FRAMES_PER_SECOND,
    Report,
    as_saved,
    measure,
    measure_outputs,
    on_device,
    print_table,
    stream_frames,
)
from quantsr.flow import flow_estimator
from quantsr.methods.base import StagedModule
from quantsr.methods.distributed import StagedDDP
from quantsr.methods.quantization import QuantizationMethod
from quantsr.metrics import dover
from quantsr.quant.folded import fold
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import fingerprint, load_teacher, save_teacher


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Calibrate a student (or train a teacher), measure it and save it in ``cfg.run_dir``.

    Returns:
        What ``metrics.json`` holds; None in the helper processes of a run on several devices.
    """
    folder = Path(cfg.run_dir)
    quiet()
    lightning.seed_everything(cfg.seed, verbose=False)
    resume = read_checkpoint(cfg.ckpt_path) if cfg.ckpt_path else None
    data: FramesDataModule = instantiate(cfg.data)
    data.setup("fit")
    metrics = clip_metrics(cfg, data)
    method: StagedModule = instantiate(cfg.method, teacher=build_teacher(cfg))
    check_frames(method.teacher, data)
    data.steps = method.steps
    if resume is not None:
        method.check_checkpoint(resume)
        data.start_step = resume["quantsr"]["step"]
    trainer = build_trainer(cfg, folder, method.trains)
    check_batch_size(data.batch_size, trainer.world_size)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        print(f"{data.summary()}\n{method.summary()}")
    if method.pairs:
        data.pairs = record_pairs(cfg, method, data, trainer)
    trainer.fit(method, datamodule=data, ckpt_path=cfg.ckpt_path)
    return report(cfg, folder, method, data, trainer, metrics) if trainer.is_global_zero else None


def build_teacher(cfg: DictConfig) -> Teacher:
    """The teacher of a configuration, from plain lists and dicts: its arguments are written to its file."""
    return instantiate(cfg.teacher, _convert_="all")


def clip_metrics(cfg: DictConfig, data: FramesDataModule) -> dict[str, Any]:
    """What :func:`measure` measures clips with beside the ground truth; nothing for images."""
    if data.frames == 1:
        return {}
    absent = dover.missing()
    if absent:
        print(f"DOVER is not measured: {absent}")
    flow = flow_estimator(cfg.flow.name, cfg.flow.weights)
    return {"flow": flow, "dover": None if absent else dover.Dover()}


def check_frames(teacher: Teacher, data: FramesDataModule) -> None:
    """Refuse a teacher and data of which one is of images and the other of clips, or of clips of other lengths.

    Raises:
        UserError: they do not fit.
    """
    if teacher.frames != data.frames:
        takes, gives = ("single images" if n == 1 else f"segments of {n} frames" for n in (teacher.frames, data.frames))
        example = "data=photos" if teacher.frames == 1 else f"data=motion data.frames={teacher.frames}"
        raise UserError(f"the teacher takes {takes}, the data gives {gives}: choose for example {example}")


def record_pairs(
    cfg: DictConfig, method: StagedModule, data: FramesDataModule, trainer: lightning.Trainer
) -> Trajectories:
    """Calibration pairs from the teacher's own sampling, out of the cache where the same have been recorded before."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    # What data is measured on, and how it is fed, does not change the pairs.
    about = {
        "teacher": method.teacher.config,
        "weights": fingerprint(method.teacher),
        "data": {key: value for key, value in plain["data"].items() if key not in ("batch_size", "num_workers")},
    }
    teacher = method.teacher.to(trainer.strategy.root_device)
    return record(teacher, data.calibration(), method.pairs, Path(cfg.cache_dir).expanduser() / "pairs", about)


def quiet() -> None:
    """Leave out what Lightning says about things that are as they should be."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode at the start of training.*",  # Normalization and dropout stay as the teacher has them.
        ".*Experiment logs directory.*",  # The run folder holds Hydra's files too.
        ".*Checkpoint directory.*",
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*smaller than the logging interval.*",
        ".*ModelCheckpoint with manual optimization.*",  # It saves between two steps, so nothing is half done.
        ".*dirpath has changed.*",
        ".*your dataloader is not resumable.*",  # Batches follow from the step that the run resumes at.
    ):
        warnings.filterwarnings("ignore", message)


def build_trainer(cfg: DictConfig, folder: Path, trains: bool) -> lightning.Trainer:
    """The Lightning trainer with the run's loggers, progress bar and checkpoints.

    On several devices gradients are averaged, see :class:`StagedDDP`.
    """
    callbacks = [StageProgress(), SaveOnInterrupt(folder / "checkpoints" / "interrupted.ckpt")]
    if trains:
        every = cfg.checkpoint_every
        callbacks.append(ModelCheckpoint(folder / "checkpoints", every_n_train_steps=every, save_last=True))
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    several = str(cfg.trainer.devices) not in ("1", "auto") or cfg.trainer.num_nodes > 1
    strategy = {"strategy": StagedDDP()} if several else {}
    settings = {"default_root_dir": folder, "enable_checkpointing": trains, **strategy}
    return instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, **settings)


def report(
    cfg: DictConfig,
    folder: Path,
    method: StagedModule,
    data: FramesDataModule,
    trainer: lightning.Trainer,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Measure, save and print what a finished run leaves."""
    method.eval().requires_grad_(False)
    if isinstance(method, QuantizationMethod):
        fold(method.student)  # What is measured is what is saved.
    device = trainer.strategy.root_device
    models = {name: on_device(model, device) for name, model in method.models().items()}
    measured = measure(models, data.validation(), method.teacher.scale, **metrics)
    summary = measured.summary()
    measured.write_csv(folder)
    sheet = folder / "comparison.png"
    measured.sheet().save(sheet)
    extras = {"comparison": sheet, **method.save_extras(folder)}
    result = folder / "teacher.safetensors"
    if isinstance(method, QuantizationMethod):
        result = folder / "artefact"
        about = {**describe(cfg), "metrics": summary}
        full_size = sum(p.numel() for p in method.teacher.parameters())
        summary["bytes"] = save_student(method.student, method.swaps, result, full_size, about)
    else:
        save_teacher(method.model, result)
    write_json(folder / "metrics.json", summary)
    log_results(trainer, summary, extras)
    print_table(summary, cfg.name)
    if "bytes" in summary:
        sizes = summary["bytes"]
        print(f"weights  {sizes['artefact'] / 1e6:.2f} MB packed, {sizes['fp32'] / 1e6:.2f} MB in float32")
    print(f"result   {result}\nimages   {sheet}\nmetrics  {folder / 'metrics.json'}")
    return summary


def log_results(trainer: lightning.Trainer, summary: dict[str, Any], extras: dict[str, Path]) -> None:
    """Give the loggers the final figures and, where they take them, pictures (.png) and tables (.csv) by name."""
    nested = {name: values for name, values in summary.items() if isinstance(values, dict)}
    flat = {f"{name}/{key}": value for name, values in nested.items() for key, value in values.items()}
    if "fidelity_psnr" in summary:
        flat["fidelity_psnr"] = summary["fidelity_psnr"]
    for logger in trainer.loggers:
        logger.log_metrics(flat)
        for name, path in extras.items():
            if path.suffix == ".png" and hasattr(logger, "log_image"):
                logger.log_image(name, [str(path)])
            elif path.suffix == ".csv" and hasattr(logger, "log_table"):
                columns, *rows = csv.reader(path.open(newline=""))
                logger.log_table(name, columns, rows)
        logger.finalize("success")


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure an artefact (or checkpoint) on a data set, or a folder of ready-made outputs against ground truth."""
    folder = Path(cfg.run_dir)
    if cfg.input is not None:
        return upscale(cfg)
    if (cfg.artefact is None) == (cfg.outputs is None):
        raise UserError(
            "eval.py measures either artefact=FOLDER (or a checkpoint) or outputs=FOLDER: give one of the two"
        )
    if cfg.outputs is not None:
        measured = evaluate_outputs(cfg)
    else:
        student, teacher = load_models(cfg)
        data: FramesDataModule = instantiate(cfg.data)
        if student.frames > 1:  # An image model takes clips frame by frame.
            check_frames(student, data)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        models = {"teacher": on_device(teacher, device), "student": on_device(student, device)}
        measured = measure(models, data.validation(), student.scale, folder / "images", **clip_metrics(cfg, data))
        measured.sheet().save(folder / "comparison.png")
        print(data.summary())
    summary = measured.summary()
    table = measured.write_csv(folder)
    write_json(folder / "metrics.json", summary)
    print_table(summary, str(cfg.outputs or cfg.artefact))
    print(f"per {'clip' if measured.frames else 'image'}   {table}\nmetrics    {folder / 'metrics.json'}")
    return summary


def upscale(cfg: DictConfig) -> dict[str, Any]:
    """Put a video file or a folder of frames through the student of ``cfg.artefact``, frame after frame.

    Leaves ``NAME.mp4`` and the frames as images; nothing is held but a segment, however long the clip is.
    """
    if cfg.artefact is None:
        raise UserError("eval.py input=CLIP upscales by a student: give artefact=FOLDER too")
    source = open_frames(Path(cfg.input).expanduser())
    student, _ = load_models(cfg)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = Path(cfg.run_dir, "images", source.path.stem)
    images.mkdir(parents=True)

    def saved() -> Iterator[torch.Tensor]:
        frames = track(stream_frames(student, source, device), "upscaling", len(source), transient=True)
        for number, frame in enumerate(frames):
            to_pil_image(as_saved(frame)).save(images / f"{number:05d}.png")  # It would cut, not round.
            yield frame

    video = images.with_suffix(".mp4")
    write_video(video, saved(), getattr(source, "fps", FRAMES_PER_SECOND))
    print(f"video    {video}\nframes   {images}")
    return {"frames": len(source)}


def evaluate_outputs(cfg: DictConfig) -> Report:
    """Compare the images of ``cfg.outputs`` with ``cfg.data.gt``, matched by name."""
    if "gt" not in cfg.data:
        raise UserError("outputs=FOLDER is measured against the ground truth of data=pairs: give data.gt=FOLDER")
    return measure_outputs(match_folders(cfg.outputs, cfg.data.gt))


def load_models(cfg: DictConfig) -> tuple[Any, Any]:
    """Student and teacher of ``cfg.artefact``: an artefact folder, a run folder, or a checkpoint in a run folder."""
    path = Path(cfg.artefact).expanduser()
    if path.suffix == ".ckpt":
        return load_checkpoint_models(path)
    student = load_student(path)
    made_from = cfg.teacher if cfg.teacher is not None else read_config(path)["teacher"]
    return student, load_teacher(made_from)


def load_checkpoint_models(path: Path) -> tuple[Any, Any]:
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
    return fold(method.student).freeze(), teacher


def read_checkpoint(path: str) -> dict[str, Any]:
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


def describe(cfg: DictConfig) -> dict[str, Any]:
    """How the run was made, for the artefact."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    bits = plain["method"]["bits"]
    return {
        "name": cfg.name,
        "method": plain["method"]["_target_"].rpartition(".")[2],
        "bits": f"w{bits['weight']}a{bits['act']}",
        "teacher": plain["teacher"].get("weights"),
        "data": plain["data"]["_target_"].rpartition(".")[2],
        "config": {key: plain[key] for key in ("method", "teacher", "data", "seed")},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name and move: a killed run leaves no half file."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.replace(path)
