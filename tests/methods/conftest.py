"""A run of a method in this process: a micro teacher, the image folder or clips, few steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback

from quantsr.data.motion import MotionDataModule
from quantsr.data.trajectories import record
from quantsr.methods.base import StagedModule
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.quantvsr import QuantVSR
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import fingerprint
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from tests.conftest import micro_video_teacher
from tests.methods.resuming import SaveInside, assert_same, state

SHORT = {
    MinMax: {"observation_steps": 2},
    PassionSR: {"observation_steps": 2, "steps": 4, "transform_lr": 3e-3, "bounds_lr": 1e-2, "relative_lr": True},
    QArtSR: {"observation_steps": 2, "module_steps": 2, "extended_steps": 2, "rank": 2, "update_rank": 2},
    QDiffusion: {"observation_steps": 1, "weight_steps": 2, "activation_steps": 1},
    QuantVSR: {
        "pairs": 6,
        "complexity_steps": 4,
        "smallest_rank": 2,
        "largest_rank": 8,
        "rank_multiple": 2,
        "refinement_steps": 3,
        "alignment_steps": 3,
    },
}
"""Schedules of seconds."""


@pytest.fixture
def video_teacher() -> MGLDVSRTeacher:
    """The micro teacher of clips of three frames, made anew for every test."""
    return micro_video_teacher().freeze()


@pytest.fixture
def build_clips() -> Callable[..., MotionDataModule]:
    """A function that makes a data module of small clips of the packaged photographs."""

    def build(**options) -> MotionDataModule:
        return MotionDataModule(**{"frames": 3, "validation_frames": 3, "crop": 32, "clips_per_photo": 1} | options)

    return build


@pytest.fixture
def build_method(teacher) -> Callable[..., QuantizationMethod]:
    """A function that makes a short PassionSR, or with ``kind=`` another method; with ``of=`` of another teacher."""

    def build(
        kind: type = PassionSR,
        bits: Bits = Bits(4, 4),  # noqa: B008
        of: Teacher | None = None,
        **options,
    ) -> QuantizationMethod:
        return kind(of or teacher, bits, **SHORT[kind] | options)

    return build


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Where calibration pairs are kept."""
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture
def fit(build_data, build_clips, cache) -> Callable[..., Trainer]:
    """A function that runs a method as the command does, without logs; ``ckpt_path`` resumes.

    A video teacher gets clips, a method that asks for them pairs of the teacher's sampling.
    """

    def fit(method: StagedModule, *callbacks: Callback, ckpt_path: Path | None = None, **options) -> Trainer:
        data = (build_data if method.teacher.frames == 1 else build_clips)(**options)
        data.steps = method.steps
        if method.pairs:
            about = {"weights": fingerprint(method.teacher), "data": options}
            data.pairs = record(method.teacher, data.calibration(), method.pairs, cache, about)
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


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory) -> tuple[dict[str, StagedModule], Path]:
    """Methods by name whose run nothing stopped, and where each has a folder of its checkpoints."""
    return {}, tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def checkpoint_names(request) -> set[str]:
    """Those from which tests of the module resume: what their parameter ``stage`` names."""
    calls = (getattr(item, "callspec", None) for item in request.session.items if item.path == request.path)
    return {call.params["stage"] for call in calls if call and "stage" in call.params}


@pytest.fixture
def run_whole(whole_runs, checkpoint_names, fit) -> Callable[..., tuple[StagedModule, Path]]:
    """A function that gives a method's finished run and the folder of its checkpoints, once a module of tests."""

    def run(method: StagedModule, **options) -> tuple[StagedModule, Path]:
        runs, root = whole_runs
        name = type(method).__name__
        if name not in runs:
            fit(method, SaveInside(root / name, checkpoint_names), **options)
            runs[name] = method
        return runs[name], root / name

    return run


@pytest.fixture
def resume(run_whole, fit) -> Callable[..., tuple[StagedModule, StagedModule]]:
    """A function that resumes from a stage's checkpoint and ends the same, bit for bit: (resumed, not stopped)."""

    def resume(build: Callable[[], StagedModule], stage: str, **options) -> tuple[StagedModule, StagedModule]:
        whole, folder = run_whole(build(), **options)
        resumed = build()
        torch.manual_seed(123)  # Chance has no say.
        fit(resumed, ckpt_path=folder / f"{stage}.ckpt", **options)
        assert_same(state(resumed), state(whole))
        return resumed, whole

    return resume
