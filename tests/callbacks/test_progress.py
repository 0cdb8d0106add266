import io
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader

from quantsr.callbacks.progress import StageProgress, clock


class Staged(LightningModule):
    """Four observing steps, then six that train; ``step_index`` moves on inside the step."""

    def __init__(self, step_index=0, fails_at=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.step_index = step_index
        self.fails_at = fails_at

    @property
    def stage(self):
        return SimpleNamespace(name="observe" if self.step_index < 4 else "encoder.bounds")

    def training_step(self, batch, batch_idx):
        if self.step_index == self.fails_at:
            raise RuntimeError("broken")
        observing = self.stage.name == "observe"
        self.step_index += 1
        return None if observing else self.weight.detach() * 0.125

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.arange(10), batch_size=1)


def fit(module, console, **options):
    bar = StageProgress(console)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar],
        **options,
    )
    trainer.fit(module)
    return bar


def test_plain_lines_where_there_is_no_terminal():
    output = io.StringIO()
    fit(Staged(), Console(file=output, width=20))
    lines = output.getvalue().splitlines()
    assert lines[0] == "[ 0/10] observe: starts"
    assert lines[1] == "[ 1/10] observe, 0:00 taken, 0:00 left"
    assert lines[5] == "[ 4/10] observe: done, 4 steps in 0:00"
    assert lines[6] == "[ 4/10] encoder.bounds: starts"
    assert lines[7] == "[ 5/10] encoder.bounds, loss 0.125, 0:00 taken, 0:00 left"
    assert lines[-1] == "[10/10] encoder.bounds: done, 6 steps in 0:00, loss 0.125"
    assert len(lines) == 14
    assert output.getvalue().replace("\n", "").isprintable()


def test_a_bar_on_a_terminal():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    fit(Staged(), console)
    last = output.getvalue().splitlines()[-2]  # the very last only shows the cursor again
    for text in ("encoder.bounds", "10/10", "loss 0.125", "0:00:00"):
        assert text in last


def test_a_resumed_run_starts_where_it_stopped():
    output = io.StringIO()
    fit(Staged(step_index=7), Console(file=output), limit_train_batches=10)
    assert output.getvalue().splitlines()[0] == "[ 7/10] encoder.bounds: starts"


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_leaves_the_terminal_usable(terminal):
    output = io.StringIO()
    with pytest.raises(RuntimeError, match="broken"):
        fit(Staged(fails_at=5), Console(file=output, force_terminal=terminal, width=100))
    if terminal:
        assert output.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again


def test_disabled_shows_nothing():
    output = io.StringIO()
    bar = StageProgress(Console(file=output))
    bar.disable()
    bar.on_train_start(None, None)
    bar.on_train_batch_start(None, Staged(), None, 0)
    bar.on_train_batch_end(None, None, None, None, 0)
    bar.on_train_end(None, None)
    assert output.getvalue() == ""


def test_prints_above_the_bar():
    output = io.StringIO()
    bar = StageProgress(Console(file=output, force_terminal=True, width=60))
    bar.on_train_start(SimpleNamespace(num_training_batches=3), SimpleNamespace(step_index=0))
    bar.print("saved [w4a4]")
    bar._close()
    assert "saved [w4a4]" in output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (754, "12:34"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text
