"""``train.py``: calibrate a student or train a teacher, measure it, leave it in a folder."""

import os
import time
from pathlib import Path
from typing import Any

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from quantsr.data.files import stamp
from quantsr.data.frames import FramesDataModule, sample_shapes
from quantsr.data.sampling import check_batch_size
from quantsr.data.trajectories import Trajectories, record
from quantsr.deploy.artefact import save_student
from quantsr.errors import UserError
from quantsr.evaluation import measure, print_table
from quantsr.jobs import flat
from quantsr.loading import build_architecture, build_teacher, read_checkpoint
from quantsr.methods.base import StagedModule
from quantsr.methods.quantization import QuantizationMethod
from quantsr.metrics.choice import Metrics
from quantsr.metrics.cost import cost
from quantsr.offload import offloaded
from quantsr.quant.folded import fold
from quantsr.run.checks import check_frames, chosen_metrics, refuse_finished
from quantsr.run.results import log_results, write_json
from quantsr.shapes import show_shapes
from quantsr.teachers.files import fingerprint, save_teacher
from quantsr.trainer import build_trainer, quiet
from quantsr.upscaling import on_device


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Calibrate a student (or train a teacher), measure it and save it in ``cfg.run_dir``.

    Returns:
        What ``metrics.json`` holds; None in the helper processes of a run on several devices, and of a dry run.
    """
    if cfg.get("debug") is not None:
        return dry_run(cfg)
    folder = Path(cfg.run_dir)
    refuse_finished(folder)
    quiet()
    lightning.seed_everything(cfg.seed, verbose=False)
    resume = read_checkpoint(cfg.ckpt_path) if cfg.ckpt_path else None
    data: FramesDataModule = instantiate(cfg.data)
    data.setup("fit")
    metrics = chosen_metrics(cfg, data)
    method: StagedModule = instantiate(cfg.method, teacher=build_teacher(cfg))
    check_frames(method.teacher, data)
    if method.needs_gt and "gt" not in sample_shapes(data.calibration()):
        raise UserError(f"{type(method).__name__} trains against the ground truth, and the data has none: give data.gt")
    if cfg.gradient_checkpointing:
        method.checkpoint_gradients()
    if cfg.offload:
        method.offload_parts()
    if cfg.micro_batch is not None:
        method.split_batches(cfg.micro_batch)
    method.options = deciding(cfg)
    data.steps, data.first_batches = method.steps, method.first_batches
    if resume is not None:
        method.check_checkpoint(resume)
        data.start_step = resume["quantsr"]["step"]
    trainer = build_trainer(cfg, folder, method.trains)
    for size in (data.batch_size, *(size for _, size in data.first_batches)):
        check_batch_size(size, trainer.world_size)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        print(f"{data.summary()}\n{method.summary()}")
    if method.pairs:
        data.pairs = record_pairs(cfg, method, data, trainer)
    start = time.monotonic()
    trainer.fit(method, datamodule=data, ckpt_path=cfg.ckpt_path)
    seconds = time.monotonic() - start
    return report(cfg, folder, method, data, trainer, metrics, seconds) if trainer.is_global_zero else None


def deciding(cfg: DictConfig) -> dict[str, Any]:
    """The options that decide the result, by key; names of files and folders that are there as absolute paths.

    Left out is what says where a run reads and writes, what is measured, and how the work is divided: among processes,
    devices and pieces of a batch.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    chosen = {key: plain[key] for key in ("seed", "bits", "method", "teacher", "data")}
    options = flat({**chosen, "trainer": {"precision": plain["trainer"]["precision"]}})
    return {key: absolute(value) for key, value in options.items() if not key.endswith(".num_workers")}


def absolute(value: Any) -> Any:
    """The whole path of a file or folder that is there; anything else as it is."""
    path = os.path.expanduser(value) if isinstance(value, str) else ""
    return os.path.realpath(path) if os.path.exists(path) else value


def dry_run(cfg: DictConfig) -> None:
    """Print what the run would do, without its files: see :func:`show_shapes`."""
    method: StagedModule = instantiate(cfg.method, teacher=build_architecture(cfg))
    data = calibration_node(cfg.data)
    show_shapes(method, data.batch_size, data.crop, f"dry run of {cfg.name}, nothing is read or trained")


def calibration_node(data: DictConfig | dict[str, Any]) -> Any:
    """What a configuration of data says of the samples to calibrate on, which may be a data set of their own."""
    return data.get("calibration", data)


def record_pairs(
    cfg: DictConfig, method: StagedModule, data: FramesDataModule, trainer: lightning.Trainer
) -> Trajectories:
    """Calibration pairs from the teacher's own sampling, out of the cache where the same have been recorded before."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    # What data is measured on, and how it is fed, does not change the pairs.
    data_config = calibration_node(plain["data"])
    about = {
        "teacher": method.teacher.config,
        "weights": fingerprint(method.teacher),
        "data": {key: value for key, value in data_config.items() if key not in ("batch_size", "num_workers")},
        "files": stamp(data.paths()[0]),
    }
    teacher = method.teacher.to(trainer.strategy.root_device)
    return record(teacher, data.calibration(), method.pairs, Path(cfg.cache_dir).expanduser() / "pairs", about)


def report(
    cfg: DictConfig,
    folder: Path,
    method: StagedModule,
    data: FramesDataModule,
    trainer: lightning.Trainer,
    metrics: Metrics,
    seconds: float,
) -> dict[str, Any]:
    """Measure, save and print what a finished run leaves."""
    method.eval().requires_grad_(False)
    if isinstance(method, QuantizationMethod):
        fold(method.student)  # What is measured is what is saved.
    device = trainer.strategy.root_device
    models = {name: on_device(model, device) for name, model in method.models().items()}
    scale, samples = method.teacher.scale, folder / "outputs"
    with offloaded(list(method.models().values()), device, cfg.offload):
        measured = measure(models, data.validation(), scale, metrics.to(device), samples_dir=samples)
    summary = measured.summary()
    measured.write_csv(folder)
    sheet = folder / "comparison.png"
    measured.sheet().save(sheet)
    extras = {"comparison": sheet, **method.save_extras(folder)}
    result = folder / "teacher.safetensors"
    if isinstance(method, QuantizationMethod):
        result = folder / "artefact"
        size, frames = data.validation()[0]["lq"].shape[-2:], method.teacher.frames
        shape = (1, *((frames,) if frames > 1 else ()), 3, *size)
        summary["cost"] = cost(method.student, method.teacher, shape).to_dict()
        about = {**describe(cfg), "metrics": summary}
        full_size = sum(p.numel() for p in method.teacher.parameters())
        summary["bytes"] = save_student(method.student, method.swaps, result, full_size, about)
    else:
        save_teacher(method.model, result)
    if cfg.ckpt_path is None:  # Of a run that goes on with another, these would be the seconds of its last part.
        summary["seconds"] = seconds
    write_json(folder / "metrics.json", summary)
    log_results(trainer, summary, extras)
    print_table(summary, cfg.name)
    if "bytes" in summary:
        sizes = summary["bytes"]
        print(f"weights  {sizes['artefact'] / 1e6:.2f} MB packed, {sizes['fp32'] / 1e6:.2f} MB in float32")
    print(f"result   {result}\nimages   {sheet}\n         {samples}\nmetrics  {folder / 'metrics.json'}")
    return summary


def describe(cfg: DictConfig) -> dict[str, Any]:
    """How the run was made, for the artefact."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    bits, data = plain["method"]["bits"], calibration_node(plain["data"])
    return {
        "name": cfg.name,
        "method": plain["method"]["_target_"].rpartition(".")[2],
        "bits": f"w{bits['weight']}a{bits['act']}",
        "teacher": plain["teacher"].get("weights"),
        "data": data.get("name", data["_target_"].rpartition(".")[2]),
        "config": {key: plain[key] for key in ("method", "teacher", "data", "seed")},
    }
