"""The LightningModule under every method: it runs the method's stages, one after the other, in one ``fit``."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from quantsr.errors import UserError
from quantsr.methods.borders import checkpoint_gradients
from quantsr.methods.distributed import average_gradients
from quantsr.methods.stages import Batch, Stage
from quantsr.offload import Offload
from quantsr.teachers.base import Teacher


class StagedModule(LightningModule, ABC):
    """Runs ``stages()`` in one fit: one progress bar, one curve, one checkpoint that resumes inside any stage.

    Subclasses set ``teacher`` and ``model`` (what trains; its tensors that are the teacher's own are not
    checkpointed) and implement ``stages``. Optimization is manual, with one optimizer a stage; the learning rate is a
    function of the step, and the data of the step index, so that the optimizers' state and ``step_index`` are all
    there is to resume from.

    Attributes:
        options: what decides the run's result, by key as on the command line; the run sets it. Empty, as where a method
            is used without a run, it is not compared with a checkpoint's.
    """

    needs_gt = False
    """Whether it trains against the ground truth; a student follows its teacher."""

    def __init__(self, teacher: Teacher, model: nn.Module):
        super().__init__()
        self.automatic_optimization = False
        # In a tuple, so that Lightning neither moves, trains nor stores the teacher.
        self._teacher = (teacher.freeze(),)
        self.model = model
        self.step_index = 0
        self.options: dict[str, Any] = {}
        self.micro_batch: int | None = None
        self._offloads = False
        self._offload: Offload | None = None
        self._active: Stage | None = None
        self._stages: list[Stage] | None = None

    @property
    def teacher(self) -> Teacher:
        """The frozen full-precision model."""
        return self._teacher[0]

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The method's stages in order. Called once."""

    @property
    def plan(self) -> list[Stage]:
        """The stages of this run, those with no steps left out."""
        if self._stages is None:
            self._stages = [stage for stage in self.stages() if stage.steps > 0]
        return self._stages

    @property
    def steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.plan)

    @property
    def first_batches(self) -> list[tuple[int, int]]:
        """(steps, samples a step) of the stages at the start that have a batch size of their own."""
        first = takewhile(lambda stage: stage.batch_size is not None, self.plan)
        return [(stage.steps, stage.batch_size) for stage in first]

    @property
    def pairs(self) -> int | None:
        """How many pairs of the teacher's sampling the method trains on; None: it trains on the data itself."""
        return None

    @property
    def trains(self) -> bool:
        """Whether any stage trains, rather than only observes."""
        return any(stage.parameters for stage in self.plan)

    def checkpoint_gradients(self) -> None:
        """Keep less for the backward pass: every block of the model computes its activations again there.

        Raises:
            UserError: the method has no use for it.
        """
        checkpoint_gradients(self.model, (name for names in self.teacher.blocks().values() for name in names))

    def split_batches(self, size: int) -> None:
        """Let ``size`` samples of a device through the model at a time and add up their gradients: less memory.

        Stages that only observe see whole batches.

        Raises:
            UserError: no samples, or a method whose steps do not add up.
        """
        if size < 1:
            raise UserError(f"micro_batch must be at least 1, not {size}")
        self.micro_batch = size

    def offload_parts(self) -> None:
        """Let the teacher's weights, which the student shares, wait elsewhere while their part does not run.

        See :mod:`quantsr.offload`.

        Raises:
            UserError: a method that trains them.
        """
        self._offloads = True

    @abstractmethod
    def models(self) -> dict[str, Teacher]:
        """What is measured when the run is over, by name."""

    def save_extras(self, folder: Path) -> dict[str, Path]:
        """Write what the method itself has to show, when the run is over; returns pictures by name for the loggers."""
        return {}

    def summary(self) -> str:
        """One line for the log: the stages and their steps."""
        return f"{type(self).__name__}: " + ", ".join(f"{stage.name} {stage.steps}" for stage in self.plan)

    def locate(self, step: int) -> tuple[int, int]:
        """Stage number and step inside that stage of the run's ``step``."""
        starts = [0, *accumulate(stage.steps for stage in self.plan)]
        number = min(bisect_right(starts, step), len(self.plan)) - 1
        return number, step - starts[number]

    @property
    def stage(self) -> Stage:
        """The stage that the next step belongs to (the last one when all is done)."""
        return self.plan[self.locate(self.step_index)[0]]

    def configure_optimizers(self) -> list[Optimizer]:
        return [stage.build_optimizer() for stage in self.plan if stage.parameters]

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        if self._offloads:
            self._offload = Offload([self.teacher, self.model], self.teacher.parameters(), self.device)

    def on_fit_end(self) -> None:
        if self._offload is not None:
            self._offload.close()
            self._offload = None

    def _enter(self, stage: Stage) -> None:
        """Let exactly the stage's parameters train."""
        self.model.requires_grad_(False)
        for parameter in stage.parameters:
            parameter.requires_grad_(True)
        self._active = stage

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        number, step = self.locate(self.step_index)
        stage = self.plan[number]
        if self._active is not stage:
            self._enter(stage)
        loss = None
        if stage.parameters:
            loss = self._optimize(stage, step, batch)
            self.log("loss", loss, prog_bar=True)
            self.log(f"loss/{stage.name}", loss)
        else:
            stage.loss(batch)
        self.step_index += 1
        if step == stage.steps - 1:
            with nullcontext() if self._offload is None else self._offload.everything():
                stage.finish()
        return loss

    def _optimize(self, stage: Stage, step: int, batch: Batch) -> Tensor:
        """One optimizer step; returns the batch's loss."""
        optimizer = self._optimizer_of(stage)
        if step == 0:
            stage.measure_sizes(optimizer)
        stage.set_learning_rate(optimizer, step)
        optimizer.zero_grad()
        loss = sum(self._backward(stage, piece, share) for piece, share in pieces(batch, self.micro_batch))
        if not math.isfinite(loss.item()):
            raise self._diverged("loss", loss)
        average_gradients(stage.parameters)
        optimizer.step()
        self.after_optimizer_step()
        if step == stage.steps - 1:  # Its moments are not needed again, in memory or in checkpoints.
            optimizer.zero_grad(set_to_none=True)
            optimizer.optimizer.state.clear()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradients and clip them; until now, mixed precision of 16 bits has had them scaled."""
        stage = self.stage
        norm = nn.utils.get_total_norm([p.grad for p in stage.parameters if p.grad is not None])
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # It leaves out steps that are not finite.
        if scaler is None and not math.isfinite(norm.item()):
            raise self._diverged("gradient", norm)
        if stage.max_norm is not None:
            nn.utils.clip_grads_with_norm_(stage.parameters, stage.max_norm, norm)

    def after_optimizer_step(self) -> None:
        """Put right what a step may have taken out of its bounds."""

    def _diverged(self, what: str, value: Tensor) -> UserError:
        stage, step = self.stage, self.locate(self.step_index)[1]
        return UserError(
            f"the {what} is {value.item()} in stage {stage.name}, step {step + 1} of {stage.steps}: "
            "lower the stage's learning rate; the last checkpoint is from before"
        )

    def _backward(self, stage: Stage, piece: Batch, share: float) -> Tensor:
        """Add the gradients of a piece of a batch; returns its share of the loss."""
        loss = stage.loss(piece) * share
        self.manual_backward(loss)
        if self._offload is not None:
            self._offload.backward_is_over()
        return loss.detach()

    def _optimizer_of(self, stage: Stage) -> Optimizer:
        optimizers = self.optimizers()
        every = optimizers if isinstance(optimizers, list) else [optimizers]
        return every[[s for s in self.plan if s.parameters].index(stage)]

    # Checkpoints: what is the teacher's own is left out and comes back from the teacher.

    def identity(self) -> dict[str, Any]:
        """What has to be the same in a checkpoint and in the run that resumes from it."""
        return {"method": type(self).__name__, "stages": [[stage.name, stage.steps] for stage in self.plan]}

    def _teacher_keys(self) -> set[str]:
        own = {id(t) for t in [*self.teacher.parameters(), *self.teacher.buffers()]}
        named = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        return {name for name, tensor in named if id(tensor) in own}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        shared = self._teacher_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in shared}
        checkpoint["quantsr"] = {**self.identity(), "options": self.options, "step": self.step_index}

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, of other options or other stages, naming the first difference.

        Raises:
            UserError: the checkpoint cannot be resumed by this run.
        """
        found, own = checkpoint["quantsr"], self.identity()
        given = self.options or found.get("options", {})
        written = found.get("options") or given  # Older checkpoints hold none.
        before, now = written | found, given | own
        for key in ("method", *(written | given), *own):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"ckpt_path was written with {key} = {before.get(key)}, this run has {now.get(key)}: "
                    "give the options of the first run"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        self.step_index = checkpoint["quantsr"]["step"]
        state = self.state_dict()
        # Buffers that no state dict holds follow from the teacher's configuration.
        checkpoint["state_dict"] |= {name: state[name] for name in self._teacher_keys() & state.keys()}


def pieces(batch: Batch, size: int | None) -> Iterator[tuple[Batch, float]]:
    """A batch in pieces of ``size`` samples, the last one perhaps smaller, each with its share of the samples."""
    samples = len(next(iter(batch.values())))
    size = size or samples
    for start in range(0, samples, size):
        piece = {key: values[start : start + size] for key, values in batch.items()}
        yield piece, len(next(iter(piece.values()))) / samples
