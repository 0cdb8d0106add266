"""The commands: ``train(cfg)``, ``evaluate(cfg)`` and ``import_released(cfg)`` instantiate, run and report.

Hydra's configuration is seen here, and where models and the trainer are built of it; below, signatures are the schema.
"""

import time
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from quantsr.data.files import EXTENSIONS, read_one
from quantsr.data.frames import FramesDataModule, sample_shapes
from quantsr.data.pairs import PairsDataModule, match_folders
from quantsr.data.sampling import check_batch_size
from quantsr.data.trajectories import Trajectories, record
from quantsr.data.video import open_frames
from quantsr.deploy.artefact import save_student
from quantsr.deploy.released import import_checkpoint, swaps_of
from quantsr.errors import UserError
from quantsr.evaluation import Report, measure, measure_outputs, print_table
from quantsr.flow import flow_estimator
from quantsr.loading import build_architecture, build_teacher, load_models, read_checkpoint
from quantsr.methods.base import StagedModule
from quantsr.methods.quantization import QuantizationMethod
from quantsr.metrics.choice import Metrics, choose, print_choice
from quantsr.metrics.cost import cost
from quantsr.quant.folded import fold
from quantsr.results import log_results, write_json
from quantsr.shapes import show_shapes
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import fingerprint, save_teacher
from quantsr.trainer import build_trainer, quiet
from quantsr.upscaling import on_device, upscale, upscale_image


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Calibrate a student (or train a teacher), measure it and save it in ``cfg.run_dir``.

    Returns:
        What ``metrics.json`` holds; None in the helper processes of a run on several devices, and of a dry run.
    """
    if cfg.get("debug") is not None:
        return dry_run(cfg)
    folder = Path(cfg.run_dir)
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
    if cfg.micro_batch is not None:
        method.split_batches(cfg.micro_batch)
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


def dry_run(cfg: DictConfig) -> None:
    """Print what the run would do, without its files: see :func:`show_shapes`."""
    method: StagedModule = instantiate(cfg.method, teacher=build_architecture(cfg))
    data = calibration_node(cfg.data)
    show_shapes(method, data.batch_size, data.crop, f"dry run of {cfg.name}, nothing is read or trained")


def calibration_node(data: DictConfig | dict[str, Any]) -> Any:
    """What a configuration of data says of the samples to calibrate on, which may be a data set of their own."""
    return data.get("calibration", data)


def chosen_metrics(cfg: DictConfig, data: FramesDataModule) -> Metrics:
    """The metrics of ``cfg.metrics`` for the validation data, after a table of what is missing."""
    validation = data.validation()
    shapes = sample_shapes(validation)
    *outer, height, width = shapes["lq"]
    reference = "gt" in shapes
    shape = shapes["gt"] if reference else (*outer, data.scale * height, data.scale * width)
    flow = flow_estimator(cfg.flow.name, cfg.flow.weights) if len(shape) == 4 else None
    metrics = choose(**cfg.metrics, shape=shape, count=len(validation), flow=flow, reference=reference)
    rank_zero_only(print_choice)(metrics)
    return metrics


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
    data_config = calibration_node(plain["data"])
    about = {
        "teacher": method.teacher.config,
        "weights": fingerprint(method.teacher),
        "data": {key: value for key, value in data_config.items() if key not in ("batch_size", "num_workers")},
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
    summary["seconds"] = seconds
    write_json(folder / "metrics.json", summary)
    log_results(trainer, summary, extras)
    print_table(summary, cfg.name)
    if "bytes" in summary:
        sizes = summary["bytes"]
        print(f"weights  {sizes['artefact'] / 1e6:.2f} MB packed, {sizes['fp32'] / 1e6:.2f} MB in float32")
    print(f"result   {result}\nimages   {sheet}\n         {samples}\nmetrics  {folder / 'metrics.json'}")
    return summary


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure an artefact (or checkpoint) on a data set, or a folder of ready-made outputs against ground truth.

    Or upscale an image or a clip, of which nothing is measured.
    """
    folder = Path(cfg.run_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.input is not None:
        if cfg.artefact is None:
            raise UserError("eval.py input=FILE upscales by a student: give artefact=FOLDER too")
        path = Path(cfg.input).expanduser()
        is_image = path.suffix.lower() in EXTENSIONS and not path.is_dir()
        source = read_one(path) if is_image else open_frames(path)
        student, _ = load_models(cfg.artefact, cfg.teacher, cfg.tile)
        if is_image:
            output = folder / "images" / f"{path.stem}.png"
            upscale_image(student, source, output, device)
            print(f"image    {output}")
            return {"images": 1}
        video, images = upscale(student, source, folder / "images", device)
        print(f"video    {video}\nframes   {images}")
        return {"frames": len(source)}
    if (cfg.artefact is None) == (cfg.outputs is None):
        raise UserError(
            "eval.py measures either artefact=FOLDER (or a checkpoint) or outputs=FOLDER: give one of the two"
        )
    measured = evaluate_outputs(cfg, device) if cfg.outputs is not None else evaluate_artefact(cfg, device)
    summary = measured.summary()
    table = measured.write_csv(folder)
    write_json(folder / "metrics.json", summary)
    print_table(summary, str(cfg.outputs or cfg.artefact))
    print(f"per {'clip' if measured.frames else 'image'}   {table}\nmetrics    {folder / 'metrics.json'}")
    return summary


def evaluate_artefact(cfg: DictConfig, device: str) -> Report:
    """Measure the student and the teacher of ``cfg.artefact`` on ``cfg.data``; the student's outputs are saved."""
    folder = Path(cfg.run_dir)
    student, teacher = load_models(cfg.artefact, cfg.teacher, cfg.tile)
    data: FramesDataModule = instantiate(cfg.data)
    if student.frames > 1:  # An image model takes clips frame by frame.
        check_frames(student, data)
    metrics = chosen_metrics(cfg, data).to(device)
    models = {"teacher": on_device(teacher, device), "student": on_device(student, device)}
    measured = measure(models, data.validation(), student.scale, metrics, images_dir=folder / "images")
    measured.sheet().save(folder / "comparison.png")
    print(data.summary())
    return measured


def evaluate_outputs(cfg: DictConfig, device: str) -> Report:
    """Compare the images of ``cfg.outputs`` with the ground truth of a data set of pairs, matched by name."""
    data = instantiate(cfg.data)
    if not isinstance(data, PairsDataModule) or data.gt is None:
        raise UserError(
            "outputs=FOLDER is measured against the ground truth of pairs: give data=pairs data.lq=FOLDER "
            "data.gt=FOLDER, or a data set that is found in pairs, such as data=realsr data.root=FOLDER"
        )
    matches = match_folders(cfg.outputs, data.gt)
    metrics = choose(**cfg.metrics, count=len(matches))
    print_choice(metrics)
    return measure_outputs(matches, metrics.to(device))


def import_released(cfg: DictConfig) -> dict[str, int]:
    """Make an artefact of a student that its authors released; see :func:`import_checkpoint`.

    Returns:
        Sizes in bytes, see :func:`save_student`.
    """
    files, bits = list(cfg.files), instantiate(cfg.bits)
    teacher = build_teacher(cfg)
    student = import_checkpoint(files, teacher, bits)
    plain = OmegaConf.to_container(cfg, resolve=True)
    about = {
        "name": cfg.name,
        "method": "the authors' own",
        "bits": str(bits),
        "teacher": plain["teacher"].get("weights"),
        "data": "the authors' own",
        "config": {key: plain[key] for key in ("files", "teacher", "seed")},
    }
    folder, swaps = Path(cfg.run_dir) / "artefact", swaps_of(student)
    sizes = save_student(student, swaps, folder, sum(p.numel() for p in teacher.parameters()), about)
    print(f"{len(swaps)} layers and attention products at {bits} (simulated)")
    print(f"weights  {sizes['artefact'] / 1e6:.2f} MB packed, {sizes['fp32'] / 1e6:.2f} MB in float32")
    print(f"result   {folder}")
    return sizes


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
