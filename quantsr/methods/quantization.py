"""What all quantization methods share: a student made from the teacher by rules, and stages that find its ranges."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from quantsr.errors import UserError
from quantsr.methods.base import StagedModule
from quantsr.methods.stages import Batch, Stage
from quantsr.quant.calibrate import mode, quantized_modules, settle, uncalibrated
from quantsr.quant.layer import Mode
from quantsr.quant.observer import Scale
from quantsr.quant.prepare import is_attention, prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Noisy, Teacher

PARTS = ("encoder", "denoiser", "decoder")
SENSITIVE_BITS = 8


class QuantizationMethod(StagedModule):
    """A method is a recipe for the layers of each part and the stages that calibrate them.

    Args:
        teacher: the full-precision model; the student shares its weights.
        bits: bit widths of weights and activations.
        parts: which of ``encoder``, ``denoiser`` and ``decoder`` are quantized.
        observation_steps: calibration batches that ranges (and smoothing scales) are averaged over.
        attention: quantize the products of attention too, where the method says how.
        seed: of random rotations.

    Attributes:
        observation_batch: samples of a batch there; None for those that the run is given.

    Raises:
        UserError: no part, or an unknown one.
    """

    observation_batch: int | None = None

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = True,
        seed: int = 0,
    ):
        unknown = set(parts) - set(PARTS)
        if unknown or not parts:
            raise UserError(f"method.parts takes one or more of {list(PARTS)}, not {list(parts)}")
        super().__init__(teacher, teacher.twin())
        self.bits, self.observation_steps, self.attention = bits, observation_steps, attention
        self.parts = [part for part in PARTS if part in parts]
        self.swaps = prepare(self.student, self.rules(), seed)

    @property
    def student(self) -> Teacher:
        """The quantized model."""
        return self.model

    def models(self) -> dict[str, Teacher]:
        return {"teacher": self.teacher, "student": self.student}

    @property
    def every_block(self) -> list[str]:
        """The teacher's blocks by name, in execution order."""
        blocks = self.teacher.blocks()
        return [name for part in PARTS for name in blocks[part]]

    @property
    def blocks(self) -> list[str]:
        """Those of the quantized parts."""
        blocks = self.teacher.blocks()
        return [name for part in self.parts for name in blocks[part]]

    # The recipe.

    @abstractmethod
    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        """How the layers of a part are quantized."""

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe | None:
        """How its attention products are quantized; None leaves them in full precision."""
        return None

    def exceptions(self, part: str) -> list[str]:
        """Layers of a part that are quantized in another way than the rest of it."""
        return self.teacher.sensitive()[part]

    def exception_recipe(self, part: str) -> LayerRecipe | None:
        """How these are quantized: at 8 bits at least; None leaves them in full precision."""
        return self.layer_recipe(self.bits.at_least(SENSITIVE_BITS), part)

    def rules(self) -> list[Rule]:
        """The exceptions, the other layers of the chosen parts by the recipe, the rest kept."""
        prefixes = self.teacher.parts()
        rules = []
        for part in self.parts:
            exceptions = self.exceptions(part)
            rules += [Rule(name, self.exception_recipe(part)) for name in exceptions]
            attention = self.attention_recipe(self.bits, part) if self.attention else None
            for prefix in prefixes[part]:
                owner = self.teacher.get_submodule(prefix)
                if prefix not in exceptions:
                    rules.append(Rule(f"{prefix}*", self.layer_recipe(self.bits, part)))
                if attention is not None and any(map(is_attention, owner.modules())):
                    rules.append(Rule(f"{prefix}*", attention))
        rest = [prefix for part in PARTS if part not in self.parts for prefix in prefixes[part]]
        return rules + [Rule(f"{prefix}*") for prefix in [*rest, *self.teacher.kept()]]

    def noisy(self, batch: Batch) -> Noisy | None:
        """Where the teacher's own sampling is when this step of the run trains: one sampling step after the other."""
        return self.teacher.noisy(batch["lq"], self.step_index % self.teacher.steps)

    def distillation_loss(self, batch: Batch) -> Tensor:
        """Sum over the quantized parts of the relative squared error of their output, on the teacher's own input."""
        teacher, student, lq, noisy = self.teacher, self.student, batch["lq"], self.noisy(batch)
        with torch.no_grad():
            latent = teacher.encode(lq)
            epsilon = teacher.denoise(latent, noisy)
        loss = lq.new_zeros(())
        if "encoder" in self.parts:
            loss = loss + relative_error(student.encode(lq), latent)
        if "denoiser" in self.parts:
            loss = loss + relative_error(student.denoise(latent, noisy), epsilon)
        if "decoder" in self.parts:
            with torch.no_grad():
                clean = teacher.clean(latent, epsilon, noisy)
                image = teacher.decode(clean, lq)
            loss = loss + relative_error(student.decode(clean, lq), image)
        return loss

    # Calibration of ranges.

    def observation_stages(self) -> list[Stage]:
        """Smoothing scales (where the recipe has them) from full-precision inputs, then ranges of what they give."""
        smooths = any(getattr(swap.recipe, "smoothing", None) is not None for swap in self.swaps)
        steps, size = self.observation_steps, self.observation_batch
        scales, bounds = self.observe("observe_smoothing"), self.observe("observe_ranges")
        return [
            Stage("smoothing", steps if smooths else 0, scales, batch_size=size),
            Stage("ranges", steps, bounds, batch_size=size, finish=self.check_calibrated),
        ]

    def observe(self, what: Mode):
        """A stage's step that only looks: the student runs in full precision and its observers take notes."""

        def step(batch: Batch) -> None:
            with torch.no_grad(), mode(self.student, what):
                self.student(batch["lq"])
            settle(self.student, joined_maximum)

        return step

    def after_optimizer_step(self) -> None:
        for module in self.student.modules():
            if isinstance(module, Scale) and module.scale.requires_grad:
                module.keep_positive()

    def check_calibrated(self) -> None:
        """Refuse to go on when a layer has seen no data."""
        missing = uncalibrated(quantized_modules(self.student))
        if missing:
            raise UserError(f"{len(missing)} layers never ran during calibration, the first: {', '.join(missing[:5])}")

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit" and self.sized_by_data:
            self.allocate_scales(self.trainer.datamodule.calibration()[0]["lq"][None])

    @property
    def sized_by_data(self) -> bool:
        """Whether there are scales per attention key, whose number follows from the size of images."""
        recipes = (swap.recipe for swap in self.swaps)
        return any(isinstance(recipe, AttentionRecipe) and recipe.smoothing is not None for recipe in recipes)

    def allocate_scales(self, lq: Tensor) -> None:
        """Run the student once, so that scales per attention key get their length before optimizers see them."""
        with torch.no_grad(), mode(self.student, "full_precision"):
            self.student.predict(lq.to(next(self.student.parameters()).device))

    def summary(self) -> str:
        layers = sum(isinstance(swap.recipe, LayerRecipe) for swap in self.swaps)
        products = sum(isinstance(swap.recipe, AttentionRecipe) for swap in self.swaps)
        quantized = f"{layers} layers and {products} attention products quantized at {self.bits} (simulated)"
        return f"{super().summary()}\n{quantized}, parts: {', '.join(self.parts)}"

    def identity(self) -> dict[str, Any]:
        return {"method": type(self).__name__, "bits": str(self.bits), "parts": self.parts, **super().identity()}


def relative_error(own: Tensor, target: Tensor) -> Tensor:
    """|own - target|^2 / |target|^2."""
    return F.mse_loss(own, target) / target.square().mean()


def joined_maximum(values: Tensor) -> Tensor:
    """Element-wise maximum over all devices of the run."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
