"""A stage: what trains, against what, for how long. A method is a list of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

Batch = dict[str, Tensor]
Schedule = Callable[[float], float]


def constant(progress: float) -> float:
    """Learning-rate factor 1 throughout."""
    return 1.0


def drop_half_way(progress: float, factor: float = 0.2) -> float:
    """``factor`` from the middle of the stage: the milestone after the first of two epochs (PassionSR, section 4.1)."""
    return 1.0 if progress < 0.5 else factor


def linear(progress: float) -> float:
    """Factor from 1 straight down to 0 (EfficientDM's code)."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0 (LSQ, section 3)."""
    return (1 + math.cos(math.pi * progress)) / 2


def warm_cosine(progress: float) -> float:
    """Linear warm-up over the first 2 %, then half a cosine down to 1 % of the learning rate."""
    return min(1.0, progress / 0.02 + 0.01) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


class Group(NamedTuple):
    """Parameters that train with one learning rate.

    Attributes:
        parameters: what is trained.
        lr: learning rate at schedule factor 1.
        reference: the learning rate is relative to this tensor's mean magnitude when the stage starts (EfficientDM: to
            the steps of the weight that an update is added to); None leaves that to the stage.
    """

    parameters: list[nn.Parameter]
    lr: float
    reference: Tensor | None = None

    def size_of(self, parameter: nn.Parameter, relative: bool) -> float:
        """What the learning rate of one of its parameters is relative to."""
        if self.reference is not None:
            return self.reference.detach().abs().mean().item()
        size = parameter.detach().square().mean().sqrt().item()
        return size if relative and size > 0 else 1.0


@dataclass
class Stage:
    """One stage of a run.

    Args:
        name: shown in the progress bar and in the logs, for example ``denoiser.bounds``.
        steps: how many batches it takes.
        loss: the batch's loss; None where a stage only observes (then nothing is trained).
        groups: what is trained and how fast; everything else is frozen meanwhile.
        schedule: learning-rate factor as a function of the stage's progress in [0, 1). A pure function, so that there
            is nothing to store in a checkpoint.
        relative: make the learning rate of each tensor relative to its root mean square when the stage starts: bounds
            of weights and of activations differ by orders of magnitude (our choice, for short runs). Tensors of zeros
            keep ``lr``, and groups with a reference go by that.
        batch_size: samples of a step over all devices; None for those that the run is given. Stages at the start of a
            run can have a size of their own.
        optimizer: builds the optimizer from parameters and ``lr``.
        max_norm: clip the gradient's norm, None to leave it.
        finish: called once after the last step.
    """

    name: str
    steps: int
    loss: Callable[[Batch], Tensor | None]
    groups: list[Group] = field(default_factory=list)
    schedule: Schedule = constant
    relative: bool = False
    batch_size: int | None = None
    optimizer: Callable[..., Optimizer] = Adam
    max_norm: float | None = None
    finish: Callable[[], None] = lambda: None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the stage trains."""
        return [parameter for _, parameter in self._tensors()]

    def _tensors(self) -> Iterator[tuple[Group, nn.Parameter]]:
        return ((group, parameter) for group in self.groups for parameter in group.parameters)

    def build_optimizer(self) -> Optimizer:
        """An optimizer with one group a tensor, so that each can have a learning rate of its own."""
        optimizer = self.optimizer(self.parameters)
        (whole,) = optimizer.param_groups
        # Split here: given groups, torch compares each with all before it, which takes 2 s a stage for 3,000 tensors.
        optimizer.param_groups = [
            {**whole, "params": [p], "lr": group.lr, "rate": group.lr, "size": 1.0} for group, p in self._tensors()
        ]
        return optimizer

    def measure_sizes(self, optimizer: Optimizer) -> None:
        """Note what learning rates are relative to; called when the stage starts."""
        for entry, (group, parameter) in zip(optimizer.param_groups, self._tensors(), strict=True):
            entry["size"] = group.size_of(parameter, self.relative)

    def set_learning_rate(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rates of the stage's ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * self.schedule(step / self.steps) * group["size"]
