"""``method=trq``: timestep retraining quantization, the first step of QArtSR (arXiv 2503.05584, section on TRQ).

A teacher is moved to the timestep at which quantization will cost the least, and retrained there in full precision:

    timesteps   the error of an untrained student is measured at every candidate; the best is chosen, the model retimed
    teacher     the model trains at that timestep as in ``method=teacher``

The result is a new teacher, to be quantized by any method.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantsr.errors import UserError
from quantsr.methods.stages import Batch, Stage
from quantsr.methods.teacher import TeacherTraining
from quantsr.methods.trq.curve import TimestepCurve
from quantsr.methods.trq.probe import TimestepProbe
from quantsr.methods.trq.report import draw, print_curve, write_csv
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher


class TimestepRetraining(TeacherTraining):
    """Chooses a timestep for a teacher and retrains it there.

    Args:
        teacher: where to start from; it is left as it is, the retimed and trained copy is ``model``.
        bits: widths of the untrained student that the errors are measured with.
        timesteps: the candidates, in rising order.
        observation_steps: batches that the errors are averaged over.
        timestep: take this one whatever the errors are (it is measured beside the candidates); None to choose.
        epsilon_limit: largest root mean square of the epsilon that a timestep may need (our choice, see
            :mod:`quantsr.methods.trq.curve`).
        training: steps, learning rate and losses of :class:`TeacherTraining`; with ``steps=0`` the model is only
            retimed.

    Raises:
        UserError: candidates or a timestep that cannot be, or nothing to choose by.
        ValueError: a timestep that the schedule does not have.
    """

    def __init__(
        self,
        teacher: OneStepTeacher,
        bits: Bits,
        timesteps: Sequence[int],
        observation_steps: int = 8,
        timestep: int | None = None,
        epsilon_limit: float = 1.0,
        **training: Any,
    ):
        if training.get("autoencoder_steps"):
            raise UserError("method=trq keeps the autoencoder, in whose latents it measures: use method=teacher")
        if not isinstance(teacher, OneStepTeacher):
            raise UserError("method=trq moves the timestep of one-step teachers, and this teacher has several steps")
        super().__init__(teacher, **training)
        if observation_steps < 1:
            raise UserError(f"method.observation_steps must be at least 1, not {observation_steps}")
        self.bits, self.observation_steps = bits, observation_steps
        self.forced, self.epsilon_limit = timestep, epsilon_limit
        self.curve = TimestepCurve(timesteps, teacher.abars)
        if timestep is not None:
            self.model.retime(timestep)
            self.curve = TimestepCurve(sorted({*timesteps, timestep}), teacher.abars)
        # In a tuple, like the teacher, and only for as long as it is needed: it holds a quantized copy of every weight.
        self._probe: tuple[TimestepProbe, ...] = (TimestepProbe(teacher, bits),)

    def stages(self) -> list[Stage]:
        measuring = Stage("timesteps", self.observation_steps, self.measure, finish=self.choose)
        return [measuring, *super().stages()]

    def models(self) -> dict[str, Teacher]:
        return {"before": self.teacher, **super().models()}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for probe in self._probe:
            probe.to(self.device)

    def measure(self, batch: Batch) -> None:
        """A step of the first stage: nothing trains."""
        (probe,) = self._probe
        self.curve.add(probe.measure(batch["lq"], self.curve.timesteps))

    def choose(self) -> None:
        """Retime the model by what was measured, and say so."""
        timestep, reason = self.choice()
        self.model.retime(timestep)
        self._probe = ()
        self.print(f"timestep {timestep} instead of {self.teacher.timestep}: {reason}")

    def choice(self) -> tuple[int, str]:
        """The timestep to train at, and the reason in words."""
        return self.curve.best(self.epsilon_limit) if self.forced is None else (self.forced, "asked for")

    def save_extras(self, folder: Path) -> dict[str, Path]:
        title = f"Error of the untrained {self.bits} student"
        picture, chosen = folder / "timesteps.png", self.model.timestep
        write_csv(self.curve, chosen, folder / "timesteps.csv")
        draw(self.curve, chosen, self.epsilon_limit, title, picture)
        print_curve(self.curve, chosen, title)
        return {"timesteps": picture}

    def identity(self) -> dict[str, Any]:
        measured = {"bits": str(self.bits), "timesteps": self.curve.timesteps, "epsilon_limit": self.epsilon_limit}
        return {"method": type(self).__name__, **measured, "timestep": self.forced, **super().identity()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.step_index >= self.observation_steps:
            # The choice is not stored: it follows from the sums, which Lightning loads only after this.
            stored = checkpoint["state_dict"]
            self.curve.load_state_dict({name: stored[f"curve.{name}"] for name in self.curve.state_dict()})
            self.model.retime(self.choice()[0])
