"""Ctrl-C and SIGTERM end a run with a complete checkpoint instead of a traceback."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from quantsr.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveOnInterrupt(Callback):
    """Save at the end of the step in which SIGINT or SIGTERM came, then leave ``trainer.fit``.

    ``trainer.fit`` raises :class:`quantsr.errors.Interrupted`. A second signal does not wait: it raises
    ``KeyboardInterrupt``, which Lightning turns into ``SystemExit(1)``. One process of several that gets the
    signal stops all of them after the same step.

    While training steps run, the handlers replace Lightning's own for SIGTERM, which would not save.

    Args:
        path: the checkpoint to write; Lightning writes it under another name and moves it there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._asked = False
        self._speaks = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has registered its own handlers by now; it puts the first ones back after `on_train_end`.
        self._asked, self._speaks = False, trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that wait for an optimizer step are not in a checkpoint.
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._restore()
            raise KeyboardInterrupt
        self._asked = True
        if self._speaks:
            name = signal.Signals(number).name
            # Not print(): the signal may have come in the middle of one.
            os.write(2, f"\n{name}: finishing this step, then saving (once more: stop at once)\n".encode())

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            trainer.save_checkpoint(self.path)
            raise Interrupted(self.path)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
