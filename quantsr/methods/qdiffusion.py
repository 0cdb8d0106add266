"""Q-Diffusion (arXiv 2302.04304): block by block, learned rounding of the weights, then learned steps of activations.

    y = Qa(x) * Qw(W) + b        codes of W = clamp(floor(W / scale) + h(V) + zero_point, qmin, qmax)

V is trained so that a block answers as the teacher's does (BRECQ, arXiv 2102.05426), with AdaRound's annealed
regularizer (arXiv 2004.10568). Where the hidden state and a skip connection are concatenated, the two have bounds of
their own, weights and activations. The order and all figures are those of the released code.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.methods.borders import Call, call_of, recorded, replayed
from quantsr.methods.distributed import gathered
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.reconstruction import Kept, power_error, weights_only
from quantsr.methods.stages import Batch, Group, Stage, cosine
from quantsr.quant.calibrate import quantized_modules
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.rounding import AdaptiveRounding, annealed_beta
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Noisy, Teacher

WEIGHT_POWER, ACTIVATION_POWER = 2.0, 2.4
"""Exponents of the error that a block is reconstructed by."""


class QDiffusion(QuantizationMethod):
    """Block reconstruction with adaptive rounding. The defaults are the released code's.

    First the weights of every block in the order of execution, activations in full precision: the block sees what the
    quantized weights before it make of the data. Then the steps of the activations of every block, on what the block
    sees in the teacher. Bounds start where their squared error is least (the code searches with an exponent of 2.4),
    those of activations on the teacher's features (the code: of the student with quantized weights).

    Differences: the code cuts the convolution of the shortcut alone, here the one behind the normalization is cut too;
    its regularizer leaves out the second part of a cut layer, here it does not; it keeps softmax at 16 bits for Stable
    Diffusion, here attention products have the bits of all activations, so that methods are compared at the same bits.

    Args:
        teacher, bits, parts, observation_steps, attention, seed: see :class:`QuantizationMethod`.
        weight_steps: training steps of every block's rounding.
        activation_steps: training steps of every block's activation steps; 0 for none.
        kept_batches: the first batches of every stage are kept, with what they look like at the border of the block,
            and taken in turn: the blocks before need to run no more (our choice; the code keeps all data).
        rounding_weight: weight of the regularizer.
        rounding_lr: Adam's learning rate for V.
        activation_lr: Adam's learning rate for activation steps, falling to 0 by half a cosine.
        relative_lr: make that relative to each step's size, see :class:`Stage` (the code: no).
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = ("denoiser",),
        observation_steps: int = 16,
        attention: bool = True,
        weight_steps: int = 20000,
        activation_steps: int = 5000,
        kept_batches: int = 64,
        rounding_weight: float = 0.01,
        rounding_lr: float = 1e-3,
        activation_lr: float = 4e-4,
        relative_lr: bool = False,
        seed: int = 0,
    ):
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)
        self.weight_steps, self.activation_steps, self.kept_batches = weight_steps, activation_steps, kept_batches
        self.rounding_weight, self.rounding_lr = rounding_weight, rounding_lr
        self.activation_lr, self.relative_lr = activation_lr, relative_lr
        self.untouched = self.every_block[: self.every_block.index(self.blocks[0])]
        self.decided: dict[str, float] = {}
        self._kept = Kept()

    # The layer.

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", momentum=None, clipping=True),
            act=AffineSpec(bits.act, range="step", clipping=True),
            rounding="adaptive",
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="step", clipping=True))

    def rules(self) -> list[Rule]:
        """Layers that take a concatenation are cut where it was made."""
        cuts, prefixes = self.teacher.concatenations(), self.teacher.parts()
        return [
            *(
                Rule(name, replace(self.layer_recipe(self.bits, part), cut=channel))
                for part in self.parts
                for name, channel in cuts.items()
                if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes[part])
            ),
            *super().rules(),
        ]

    # The stages.

    def stages(self) -> list[Stage]:
        *_, ranges = self.observation_stages()
        ranges.finish = self.start_rounding
        weights = [
            Stage(
                f"weights {name}",
                self.weight_steps,
                partial(self.weight_loss, name),
                [Group([rounding.logits for rounding in self.roundings(name)], self.rounding_lr)],
                finish=partial(self.harden, name),
            )
            for name in self.blocks
        ]
        activations = [
            Stage(
                f"activations {name}",
                self.activation_steps,
                partial(self.activation_loss, name),
                [Group(self.steps_of(name), self.activation_lr)],
                cosine,
                self.relative_lr,
            )
            for name in self.blocks
        ]
        return [ranges, *weights, *activations]

    def roundings(self, block: str) -> list[AdaptiveRounding]:
        """Those of a block's weights."""
        return [m for m in self.student.get_submodule(block).modules() if isinstance(m, AdaptiveRounding)]

    def steps_of(self, block: str) -> list[nn.Parameter]:
        """Steps of a block's activations."""
        quantizers = (m for m in self.student.get_submodule(block).modules() if isinstance(m, Quantizer))
        return [parameter for quantizer in quantizers for parameter in quantizer.parameters()]

    def start_rounding(self) -> None:
        """With the bounds known, V starts at the weights themselves."""
        for _, layer in quantized_modules(self.student):
            if isinstance(layer, QuantizedLayer):
                layer.rounding.reset(layer.transformed_weight(), layer.weight_quantizer)
        self.check_calibrated()

    def harden(self, block: str) -> None:
        """Round a block's weights for good, and note how many were undecided until now."""
        roundings = self.roundings(block)
        weights = [rounding.logits.numel() for rounding in roundings]
        decided = sum(n * rounding.decided() for n, rounding in zip(weights, roundings, strict=True)) / sum(weights)
        self.decided[block] = decided
        for rounding in roundings:
            rounding.harden()

    # The losses.

    def weight_loss(self, block: str, batch: Batch) -> Tensor:
        """Error of the block with soft weights, and after a warm-up how undecided they are."""
        stage, step = self.locate(self.step_index)
        call, target = self.example(block, batch)
        with weights_only(self.student):
            error = power_error(call.of(self.student, block), target, WEIGHT_POWER)
        beta = annealed_beta(step / self.plan[stage].steps)
        if beta is None:
            return error
        return error + self.rounding_weight * sum(rounding.indecision(beta) for rounding in self.roundings(block))

    def activation_loss(self, block: str, batch: Batch) -> Tensor:
        """Error of the quantized block on the teacher's own features."""
        call, target = self.example(block, batch, of_teacher=True)
        return power_error(call.of(self.student, block), target, ACTIVATION_POWER)

    # What a block sees and what it should answer.

    def example(self, block: str, batch: Batch, of_teacher: bool = False) -> tuple[Call, Tensor]:
        """What this step trains a block on: a call, and the answer of the teacher's block."""
        stage, step = self.locate(self.step_index)
        slot = step % self.kept_batches
        if self._kept.stage != stage:
            self._kept = Kept(stage)
        if slot == len(self._kept.batches):
            noisy = self.noisy(batch)
            self._kept.batches.append({"lq": batch["lq"], **({} if noisy is None else noisy._asdict())})
        if slot not in self._kept.examples:
            kept = {name: tensor.to(self.device) for name, tensor in self._kept.batches[slot].items()}
            self._kept.examples[slot] = self.look_up(block, kept, of_teacher)
        return self._kept.examples[slot]

    @torch.no_grad()
    def look_up(self, block: str, batch: Batch, of_teacher: bool) -> tuple[Call, Tensor]:
        """Run both models up to a block: what the student's is called with, or the teacher's, and the teacher's answer.

        What precedes the first quantized block runs once.
        """
        lq, noisy = batch["lq"], Noisy(batch["latent"], batch["step"]) if "latent" in batch else None
        with recorded(self.teacher, self.untouched) as shared:
            call = call_of(self.teacher, block, lambda: self.teacher.predict(lq, noisy))
        target = call.of(self.teacher, block)
        if not of_teacher:
            with replayed(self.student, shared), weights_only(self.student):
                call = call_of(self.student, block, lambda: self.student.predict(lq, noisy))
        return call, target

    def checkpoint_gradients(self) -> None:
        raise UserError("qdiffusion trains one block at a time and has no use for gradient_checkpointing: leave it out")

    def split_batches(self, size: int) -> None:
        raise UserError("qdiffusion trains on the batches that it kept, whole: leave micro_batch out")

    # What the run keeps and shows.

    def save_extras(self, folder: Path) -> dict[str, Path]:
        """How decided rounding was when it was made hard."""
        if not self.decided:
            return {}
        table = folder / "rounding.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([("block", "decided"), *self.decided.items()])
        mean, least = sum(self.decided.values()) / len(self.decided), min(self.decided.values())
        print(
            f"rounding {mean:.1%} of the weights had decided before hardening, in the least decided block {least:.1%}"
        )
        return {"rounding_table": table}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        kept = {"stage": self._kept.stage, "batches": gathered(self._kept.batches)}
        checkpoint["quantsr"] |= {"decided": dict(self.decided), "kept": kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        written, here = len(checkpoint["quantsr"]["kept"]["batches"]), self._trainer.world_size if self._trainer else 1
        if here > written:
            raise UserError(
                f"qdiffusion keeps the batches of every device, and this checkpoint has those of {written}: "
                f"resume with trainer.devices={written}"
            )
        self.decided, kept = checkpoint["quantsr"]["decided"], checkpoint["quantsr"]["kept"]
        self._kept = Kept(kept["stage"], kept["batches"][self.global_rank])
