"""What runs and evaluations look at before they start: is the folder free, do metrics, data and model go together."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from quantsr.data.frames import FramesDataModule, sample_shapes
from quantsr.errors import UserError
from quantsr.flow import flow_estimator
from quantsr.metrics.choice import Metrics, choose, print_choice
from quantsr.teachers.base import Teacher


def refuse_finished(folder: Path) -> None:
    """Refuse to write into the folder of a finished run or evaluation; that of a stopped run is where it may go on.

    Raises:
        UserError: it holds figures.
    """
    if (folder / "metrics.json").is_file():
        raise UserError(f"{folder} holds a finished run: give another hydra.run.dir=FOLDER")


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
