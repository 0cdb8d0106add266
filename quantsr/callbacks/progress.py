"""The progress of a run: one bar over all its stages, or plain lines where the output is not a terminal."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

LINES = 10  # plain lines a run, besides those at the stages' borders


class StageProgress(ProgressBar):
    """Shows the stage's name, the step of the run, the loss, the time taken and the time left.

    The module that is fitted has ``stage.name``, the stage that the next step belongs to, and ``step_index``,
    the number of finished steps, which is where a resumed run starts. Its ``training_step`` returns the loss,
    or None in stages that only observe. The run is one epoch. Only the first process shows anything.

    On a terminal this is a bar; elsewhere (a log file, a pipe) a line without control characters at each
    stage's start and end and after every tenth of the run.

    Args:
        console: where to write; standard output by default.
    """

    def __init__(self, console: Console | None = None):
        super().__init__()
        self._console = console
        self._enabled = True
        self._view: BarView | LineView | None = None
        self._stage: str | None = None

    @property
    def is_enabled(self) -> bool:
        """Asked for by ``LightningModule.print``."""
        return self._enabled

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._view is None:
            super().print(*args, **kwargs)
        else:
            self._view.console.print(*args, markup=False, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            console = self._console or Console()  # made here: standard output may have been replaced since
            view = BarView if console.is_terminal else LineView
            self._stage = None
            self._view = view(console, done=pl_module.step_index, total=int(trainer.num_training_batches))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Asked for here, not at the step's end, where the module may already be at the next stage.
        name = pl_module.stage.name
        if self._view is not None and name != self._stage:
            self._end_stage()
            self._stage = name
            self._view.start_stage(name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._view is not None:
            self._view.advance(outputs.get("loss") if isinstance(outputs, Mapping) else None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_stage()
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _end_stage(self) -> None:
        if self._view is not None and self._stage is not None:
            self._view.end_stage(self._stage)

    def _close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None


class BarView:
    """A rich bar, redrawn four times a second.

    Args:
        console: a terminal.
        done: steps finished before.
        total: steps of the whole run.
    """

    def __init__(self, console: Console, done: int, total: int):
        self.console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._progress.add_task("starting", total=total, completed=done, loss="")
        self._progress.start()
        self._loss: Tensor | None = None
        self._last_read = 0.0

    def start_stage(self, name: str) -> None:
        self._progress.update(self._task, description=name, loss="")

    def advance(self, loss: Tensor | None) -> None:
        self._progress.advance(self._task)
        self._loss = loss
        # Reading a loss waits for the accelerator: no more often than it can be seen.
        if time.monotonic() - self._last_read > 0.25:
            self._last_read = time.monotonic()
            self._progress.update(self._task, loss=loss_text(loss))

    def end_stage(self, name: str) -> None:
        self._progress.update(self._task, loss=loss_text(self._loss))

    def close(self) -> None:
        self._progress.stop()


class LineView:
    """Plain lines.

    Args:
        console: where they go.
        done: steps finished before.
        total: steps of the whole run.
    """

    def __init__(self, console: Console, done: int, total: int):
        self.console = console
        self._start, self._done, self._total = done, done, total
        self._begin = time.monotonic()
        self._stage, self._stage_start, self._stage_begin = "", done, self._begin
        self._loss: Tensor | None = None

    def start_stage(self, name: str) -> None:
        self._stage, self._stage_start, self._stage_begin = name, self._done, time.monotonic()
        self._loss = None
        self._write(f"{self._counter()} {name}: starts")

    def advance(self, loss: Tensor | None) -> None:
        self._loss = loss
        before, self._done = self._done, self._done + 1
        if before * LINES // self._total < self._done * LINES // self._total:
            taken = time.monotonic() - self._begin
            left = taken / (self._done - self._start) * (self._total - self._done)
            parts = [self._stage, loss_text(loss), f"{clock(taken)} taken", f"{clock(left)} left"]
            self._write(f"{self._counter()} " + ", ".join(part for part in parts if part))

    def end_stage(self, name: str) -> None:
        taken = clock(time.monotonic() - self._stage_begin)
        parts = [f"{self._done - self._stage_start} steps in {taken}", loss_text(self._loss)]
        self._write(f"{self._counter()} {name}: done, " + ", ".join(part for part in parts if part))

    def close(self) -> None:
        pass

    def _counter(self) -> str:
        return f"[{self._done:>{len(str(self._total))}}/{self._total}]"

    def _write(self, line: str) -> None:
        # Not console.print: it would wrap at the width of a terminal that is not there.
        self.console.file.write(line + "\n")
        self.console.file.flush()


def loss_text(loss: Tensor | None) -> str:
    """``loss 0.0123``, or nothing where there is none."""
    return "" if loss is None else f"loss {float(loss):.4g}"


def clock(seconds: float) -> str:
    """``0:05``, ``12:34`` or ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
