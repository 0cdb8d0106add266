"""One case, measured in this process: seconds and peak memory of every stage and of inference."""

import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Case, low_quality
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from quantsr.offload import offloaded
from quantsr.quant.folded import fold
from quantsr.teachers.base import Teacher
from quantsr.trainer import quiet

GIB = 2**30


@dataclass
class Row:
    """Of one stage, or of inference.

    Attributes:
        what: its name.
        options: of memory.
        seconds: median of its steps.
        gib: peak memory meanwhile: of the GPU, or the resident memory of the process on a CPU.
    """

    what: str
    options: str
    seconds: float
    gib: float

    def __str__(self) -> str:
        options = f" ({self.options})" if self.options else ""
        return f"{self.what}{options}: {self.seconds:.2f} s, {self.gib:.2f} GiB"


class Watch:
    """Peak memory and seconds."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()

    def reset(self) -> None:
        """Begin a new peak."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        """GiB since :meth:`reset`."""
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / GIB
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / GIB

    def now(self) -> float:
        """Seconds, when all that was asked for is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


class StageWatch(Callback):
    """Takes time and memory of every stage of a fit, and shows them as far as they are known after every step.

    Args:
        options: of memory, in words.
        warm_up: steps of a stage that are not timed.
    """

    def __init__(self, options: str, warm_up: int):
        self.watch, self.options, self.warm_up = Watch(), options, warm_up
        self.rows: list[Row] = []
        self._stage, self._seconds = "", [0.0]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: object, number: int) -> None:
        if module.stage.name != self._stage:
            self._stage, self._seconds = module.stage.name, []
            self.watch.reset()
        self._start = self.watch.now()

    def on_train_batch_end(self, *args: object) -> None:
        self._seconds.append(self.watch.now() - self._start)
        timed = self._seconds[self.warm_up :] or self._seconds  # Stages that only observe have one step.
        row = Row(self._stage, self.options, statistics.median(timed), self.watch.peak())
        if self.rows and self.rows[-1].what == self._stage:
            self.rows.pop()
        self.rows.append(row)
        show(f"{row}, step {len(self._seconds)}")


def show(line: object) -> None:
    """Say what is known already: a step at full size takes minutes on a CPU."""
    print(line, file=sys.stderr, flush=True)


class OneInput(LightningDataModule):
    """The same input in every step."""

    def __init__(self, lq: Tensor, steps: int):
        super().__init__()
        self.samples = [{"lq": lq}] * steps

    def calibration(self) -> list[dict[str, Tensor]]:
        """What a method looks at before it starts."""
        return self.samples

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.samples, batch_size=1)


def measure(case: Case, threads: int) -> list[Row]:
    """All rows of a case."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    quiet()
    warnings.filterwarnings("ignore")
    teacher = case.build_teacher()
    lq = low_quality(teacher, case.side)
    if case.method is None:
        return list(inference(f"teacher ({case.dtype})", teacher, lq, case))
    method = case.build_method(teacher)
    watch = StageWatch(case.options, case.warm_up)
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if case.dtype == "bfloat16" else "32-true",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[watch],
    )
    trainer.fit(method, datamodule=OneInput(lq, method.steps))
    method.requires_grad_(False)
    student = f"student w{case.bits}a{case.bits} ({case.dtype}, simulated)"
    return [*watch.rows, *inference(student, fold(method.student), lq, case)]


def inference(name: str, model: Teacher, lq: Tensor, case: Case) -> Iterator[Row]:
    """The rows of running a model on one input, and nothing else.

    The first run is not timed, on a CPU either: a student makes its weights of its codes there.
    """
    watch = Watch()
    device = torch.device("cuda" if watch.on_gpu else "cpu")
    model, lq = model.to(device), lq[None].to(device)
    with offloaded([model], device, case.offload), torch.inference_mode():
        model(lq)
        watch.reset()
        seconds = []
        for _ in range(case.steps):
            start = watch.now()
            output = model(lq)
            seconds.append(watch.now() - start)
    size = f"{output.shape[-1]}x{output.shape[-2]}"
    row = Row(f"{name}, one output of {size}", case.options, statistics.median(seconds), watch.peak())
    show(row)
    yield row
