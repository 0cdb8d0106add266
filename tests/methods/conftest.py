"""A run of a method in this process: the micro teacher, the image folder, few steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback

from quantsr.methods.base import StagedModule
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantization import QuantizationMethod
from quantsr.quant.spec import Bits

SHORT = {
    MinMax: {"observation_steps": 2},
    PassionSR: {"observation_steps": 2, "steps": 4, "transform_lr": 3e-3, "bounds_lr": 1e-2, "relative_lr": True},
    QArtSR: {"observation_steps": 2, "module_steps": 2, "extended_steps": 2, "rank": 2, "update_rank": 2},
}
"""Schedules of seconds."""


@pytest.fixture
def build_method(teacher) -> Callable[..., QuantizationMethod]:
    """A function that makes a short PassionSR, or with ``kind=`` another method."""

    def build(kind: type = PassionSR, bits: Bits = Bits(4, 4), **options) -> QuantizationMethod:  # noqa: B008
        return kind(teacher, bits, **SHORT[kind] | options)

    return build


@pytest.fixture
def fit(build_data) -> Callable[..., Trainer]:
    """A function that runs a method as the command does, without logs; ``ckpt_path`` resumes."""

    def fit(method: StagedModule, *callbacks: Callback, ckpt_path: Path | None = None, **options) -> Trainer:
        data = build_data(**options)
        data.steps = method.steps
        if ckpt_path is not None:
            data.start_step = torch.load(ckpt_path, weights_only=True)["quantsr"]["step"]
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            callbacks=list(callbacks),
        )
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return fit
