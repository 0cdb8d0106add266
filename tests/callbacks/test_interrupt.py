import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from quantsr.callbacks.interrupt import SaveOnInterrupt
from quantsr.errors import Interrupted


class Toy(LightningModule):
    """Ten steps of Adam on a vector; sends ``signals`` to itself in the step ``at``."""

    def __init__(self, at: int | None = None, signals: tuple[int, ...] = ()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.at = at
        self.signals = signals
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append(batch_idx)
        if batch_idx == self.at:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return (self.weight * (batch_idx + 1)).square().sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.arange(10.0), batch_size=1)


def trainer(path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        enable_model_summary=False,
        callbacks=[SaveOnInterrupt(path)],
        **quiet,
        **options,
    )


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("at", [0, 4, 9])
def test_stops_after_the_step_and_resumes_to_the_same_result(tmp_path, capfd, number, at):
    whole = Toy()
    trainer(tmp_path / "unused.ckpt").fit(whole)
    assert not (tmp_path / "unused.ckpt").exists()

    stopped, path = Toy(at, (number,)), tmp_path / "last.ckpt"
    with pytest.raises(Interrupted) as caught:
        trainer(path).fit(stopped)
    assert caught.value.checkpoint == path
    assert stopped.steps == list(range(at + 1))
    assert f"{number.name}: finishing this step, then saving" in capfd.readouterr().err

    resumed = Toy()
    trainer(path).fit(resumed, ckpt_path=path)
    assert stopped.steps + resumed.steps == list(range(10))
    assert torch.equal(resumed.weight, whole.weight)


def test_second_signal_stops_at_once(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit):
        trainer(path).fit(Toy(2, (signal.SIGINT, signal.SIGINT)))
    assert not path.exists()


def test_waits_for_the_accumulated_step(python, tmp_path):
    stopped = Toy(4, (signal.SIGINT,))
    with pytest.raises(Interrupted):
        trainer(tmp_path / "last.ckpt", accumulate_grad_batches=3).fit(stopped)
    assert stopped.steps == [0, 1, 2, 3, 4, 5]


def test_another_error_passes_and_gives_the_handlers_back(tmp_path):
    toy = Toy()
    toy.training_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "last.ckpt").fit(toy)


DDP_SCRIPT = """
import sys
from lightning.pytorch import Trainer
from quantsr.callbacks.interrupt import SaveOnInterrupt
from quantsr.errors import Interrupted
sys.path.insert(0, {folder!r})
from test_interrupt import Toy
import os, signal

toy = Toy(1, (signal.SIGTERM,) if os.environ.get("LOCAL_RANK", "0") == "0" else ())
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, callbacks=[SaveOnInterrupt({path!r})])
try:
    trainer.fit(toy)
except Interrupted:
    with open({path!r} + f".rank{{trainer.global_rank}}", "w") as file:
        file.write(str(toy.steps))
"""


@pytest.mark.slow
def test_one_process_stops_all_after_the_same_step(python, tmp_path):
    path = tmp_path / "last.ckpt"
    script = tmp_path / "script.py"
    script.write_text(DDP_SCRIPT.format(folder=str(Path(__file__).parent), path=str(path)))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [python, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert [Path(f"{path}.rank{rank}").read_text() for rank in range(2)] == ["[0, 1]", "[0, 1]"]
    assert torch.load(path, weights_only=True)["global_step"] == 2
