"""What is measured, and the models for it: random weights in the shapes of the released networks."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr.checkpoints import random_mgldvsr
from quantsr.teachers.micro import MICRO, MICRO_VIDEO
from quantsr.teachers.osediff import random_osediff

METHODS: dict[str, tuple[type[QuantizationMethod], dict[str, Any]]] = {
    "passionsr": (PassionSR, {"observation_steps": 1}),
    "qartsr": (QArtSR, {"observation_steps": 1}),
}
BITS = {"passionsr": 8, "qartsr": 4}


@dataclass(frozen=True)
class Case:
    """One process: a model, and if a method is given its calibration.

    Attributes:
        teacher: ``osediff`` or ``mgldvsr``.
        method: of :data:`METHODS`; None to run the teacher alone.
        bits: of weights and activations.
        dtype: of the teacher, ``float32`` or ``bfloat16``; calibration in bfloat16 runs under autocast.
        side: of the low-quality input, which is a quarter of the output's.
        steps: timed steps of every stage, on a GPU after one that is not.
        gradient_checkpointing: compute activations again in the backward pass.
        offload: weights of parts that do not run wait elsewhere.
        shared: teacher and student hold the same weights in memory, as they do in quantsr.
        small: tiny networks.
    """

    teacher: str
    method: str | None = None
    bits: int = 8
    dtype: str = "bfloat16"
    side: int = 128
    steps: int = 2
    gradient_checkpointing: bool = False
    offload: bool = False
    shared: bool = True
    small: bool = False

    @property
    def options(self) -> str:
        """Of memory, in words."""
        used = {
            "gradient checkpointing": self.gradient_checkpointing,
            "per-part offload": self.offload,
            "weights of their own": not self.shared,
        }
        return ", ".join(name for name, is_used in used.items() if is_used)

    @property
    def warm_up(self) -> int:
        """Steps of a stage that are not timed. A GPU's first allocates and chooses kernels; a CPU's is like the rest,
        and takes minutes at full size."""
        return 1 if torch.cuda.is_available() else 0

    def build_teacher(self) -> Teacher:
        """Random weights."""
        if self.teacher == "mgldvsr":
            one_step = {"flow": None, "steps": 1}
            return random_mgldvsr(dtype=self.dtype, **((MICRO_VIDEO if self.small else {}) | one_step))
        return random_osediff(dtype=self.dtype, **(MICRO if self.small else {}))

    def build_method(self, teacher: Teacher) -> QuantizationMethod:
        """The method with the stages of :func:`chosen`."""
        kind, settings = METHODS[self.method]
        method = kind(teacher, Bits(self.bits, self.bits), **settings)
        if not self.shared:
            method._teacher = (deepcopy(teacher),)
        if self.gradient_checkpointing:
            method.checkpoint_gradients()
        if self.offload:
            method.offload_parts()
        method._stages = chosen(method.plan, self.warm_up + self.steps)
        return method


def chosen(plan: list[Stage], steps: int) -> list[Stage]:
    """Of QArtSR's modules the first stage and the last, else all; ``steps`` steps each, 1 where nothing trains."""
    modules = [stage for stage in plan if stage.name.startswith("module ")]
    kept = [stage for stage in plan if stage not in modules[1:-1]]
    for stage in kept:
        stage.steps = steps if stage.parameters else 1
    return kept


def low_quality(teacher: Teacher, side: int) -> torch.Tensor:
    """One random input, ``(3, side, side)`` or ``(t, 3, side, side)``."""
    frames = (teacher.frames,) if teacher.frames > 1 else ()
    return torch.rand(*frames, 3, side, side, generator=torch.Generator().manual_seed(0))
