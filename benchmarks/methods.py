"""Time of a calibration step of every method, stage by stage, against a full-precision step of the same teacher.

    python benchmarks/methods.py [--methods minmax lsq ...] [--bits w4a4] [--steps 3] [--json FILE]

Methods, teacher and data are those of ``train.py experiment=compare_image``: the packaged teacher of images, its
denoiser quantized, two crops of 128 pixels a step. A full-precision step is the teacher's forward pass from image to
image and the backward pass down to its input, weights frozen. Methods that train, or look, block by block have a stage
for each block: of those the first and the last are timed. Medians of --steps steps after one that is not counted; the
search of a stage that only looks once has a single step. Finishing a stage (QuaRot's and SVDQuant's GPTQ, say) is
counted apart.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from quantsr.data.frames import FramesDataModule
from quantsr.data.trajectories import record
from quantsr.loading import build_teacher
from quantsr.methods.base import StagedModule
from quantsr.methods.stages import Stage
from quantsr.teachers.base import Teacher
from quantsr.trainer import quiet

CONF = Path(__file__).parents[1] / "conf"
METHODS = OmegaConf.load(CONF / "experiment" / "compare_image.yaml").hydra.sweeper.params.method.split(",")


@dataclass
class Row:
    """Of one stage.

    Attributes:
        method, stage: by name.
        seconds: median of its steps.
        finish: seconds of what is done once after the last one.
    """

    method: str
    stage: str
    seconds: float
    finish: float


class StageTimer(Callback):
    """Seconds of every step, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: object, number: int) -> None:
        self._stage, self._start = module.stage.name, time.perf_counter()

    def on_train_batch_end(self, *args: object) -> None:
        self.seconds.setdefault(self._stage, []).append(time.perf_counter() - self._start)


def timed_stages(plan: list[Stage], steps: int, finish: dict[str, float]) -> list[Stage]:
    """Stages with few steps, of each row of blocks the first and the last; ``finish`` is filled when they end."""
    kept = []
    for _, row in groupby(plan, lambda stage: stage.name.partition(" ")[0]):
        first, *rest = row
        kept += [first, *rest[-1:]]
    for stage in kept:
        stage.steps = min(stage.steps, 1 + steps)
        stage.finish = timed(stage.name, stage.finish, finish)
    return kept


def timed(name: str, finish, found: dict[str, float]):
    """``finish``, its time noted."""

    def run() -> None:
        start = time.perf_counter()
        finish()
        found[name] = time.perf_counter() - start

    return run


def rows_of(method_name: str, cfg: DictConfig, steps: int, cache: Path) -> list[Row]:
    """All stages of a method."""
    data: FramesDataModule = instantiate(cfg.data)
    data.setup("fit")
    method: StagedModule = instantiate(cfg.method, teacher=build_teacher(cfg))
    finish: dict[str, float] = {}
    method._stages = timed_stages(method.plan, steps, finish)
    data.steps, data.first_batches = method.steps, method.first_batches
    if method.pairs:
        data.pairs = record(method.teacher, data.calibration(), method.pairs, cache, {"benchmark": method_name})
    timer = StageTimer()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[timer],
    )
    trainer.fit(method, datamodule=data)
    found = []
    for stage, seconds in timer.seconds.items():
        inside = finish[stage]  # The last step of a stage ends with it.
        seconds = [*seconds[:-1], seconds[-1] - inside]
        found.append(Row(method_name, stage, statistics.median(seconds[1:] or seconds), inside))
    return found


def full_precision(teacher: Teacher, lq: torch.Tensor, steps: int) -> float:
    """Seconds of a step."""
    seconds = []
    for _ in range(1 + steps):
        start, x = time.perf_counter(), lq.clone().requires_grad_()
        output = teacher(x)
        F.mse_loss(output, torch.zeros_like(output)).backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def table(rows: list[Row], base: float) -> str:
    """Markdown."""
    lines = ["| method | stage | step (s) | full precision | finish (s) |", "|---|---|--:|--:|--:|"]
    for row in rows:
        finish = f"{row.finish:.2f}" if row.finish >= 0.01 else ""
        lines.append(f"| {row.method} | {row.stage} | {row.seconds:.2f} | {row.seconds / base:.2f}x | {finish} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--bits", default="w4a4", help="default w4a4")
    parser.add_argument("--crop", type=int, default=128, help="side of the crops in pixels (default 128)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a stage (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet()

    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name in args.methods:
            options = [f"method={name}", "experiment=compare_image", f"bits={args.bits}", f"data.crop={args.crop}"]
            configs[name] = compose("train", options)
    cfg = configs[args.methods[0]]
    side, batch = args.crop // 4, cfg.data.batch_size
    lq = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    base = full_precision(build_teacher(cfg), lq, args.steps)
    print(f"full-precision step: {base:.2f} s, {batch} crops of {args.crop} pixels, {args.threads} threads", flush=True)
    rows: list[Row] = []
    with TemporaryDirectory() as cache:
        for name, cfg in configs.items():
            rows += rows_of(name, cfg, args.steps, Path(cache))
    print(table(rows, base))
    if args.json:
        args.json.write_text(json.dumps({"full_precision": base, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
