"""``eval.py``: measure a student or ready-made outputs, or upscale a file."""

from itertools import count
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from quantsr.data.files import list_images, read_one
from quantsr.data.frames import FramesDataModule
from quantsr.data.pairs import PairsDataModule, match_folders
from quantsr.data.video import open_frames
from quantsr.deploy.files import is_image, upscale_clip
from quantsr.deploy.pipeline import Pipeline
from quantsr.deploy.progress import Bars
from quantsr.errors import UserError
from quantsr.evaluation import Report, measure, measure_outputs, print_table
from quantsr.loading import load_models
from quantsr.metrics.choice import choose, print_choice
from quantsr.run.checks import check_frames, chosen_metrics, refuse_finished
from quantsr.run.results import write_json
from quantsr.upscaling import on_device


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Measure an artefact (or checkpoint) on a data set, or a folder of ready-made outputs against ground truth.

    Or upscale an image, a folder of them or a clip, of which nothing is measured.
    """
    folder = Path(cfg.run_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.input is not None:
        return upscale_file(cfg, device)
    if (cfg.artefact is None) == (cfg.outputs is None):
        raise UserError(
            "eval.py measures either artefact=FOLDER (or a checkpoint) or outputs=FOLDER: give one of the two"
        )
    refuse_finished(folder)
    measured = evaluate_outputs(cfg, device) if cfg.outputs is not None else evaluate_artefact(cfg, device)
    summary = measured.summary()
    table = measured.write_csv(folder)
    write_json(folder / "metrics.json", summary)
    print_table(summary, str(cfg.outputs or cfg.artefact))
    print(f"per {'clip' if measured.frames else 'image'}   {table}\nmetrics    {folder / 'metrics.json'}")
    return summary


def upscale_file(cfg: DictConfig, device: str) -> dict[str, Any]:
    """Upscale the image, images or clip ``cfg.input`` by the student of ``cfg.artefact``."""
    if cfg.artefact is None:
        raise UserError("eval.py input=FILE upscales by a student: give artefact=FOLDER too")
    path, folder = Path(cfg.input).expanduser().absolute(), Path(cfg.run_dir) / "images"
    look = read_one if is_image(path) else list_images if path.is_dir() else open_frames
    look(path)  # Before the student is loaded.
    pipe, output = load_pipeline(cfg, device), folder / f"{path.stem}.png"
    if is_image(path):
        print(f"image    {pipe(path, output)}")
        return {"images": 1}
    if path.is_dir() and pipe.frames == 1:
        images = pipe(path, output.with_suffix(""))
        print(f"images   {output.with_suffix('')}")
        return {"images": len(images)}
    clip = open_frames(path)
    clip.check()
    names = (output.with_suffix("") / f"{number:05d}.png" for number in count())
    with Bars() as bars:
        upscale_clip(pipe, clip, output.with_suffix(".mp4"), names, bars)
    print(f"video    {output.with_suffix('.mp4')}\nframes   {output.with_suffix('')}")
    return {"frames": len(clip)}


def load_pipeline(cfg: DictConfig, device: str) -> Pipeline:
    """The student of ``cfg.artefact`` on the fastest runtime that is ready; that of a checkpoint is simulated."""
    if Path(cfg.artefact).suffix == ".ckpt":
        student, _ = load_models(cfg.artefact)
        pipe = Pipeline(student, device)
    else:
        pipe = Pipeline.load(cfg.artefact, device=device)
    if cfg.tile is not None:
        pipe.tile = cfg.tile
    return pipe


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
