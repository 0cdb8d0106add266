"""QuantVSR (arXiv 2508.04485): rotated low bits beside a 16-bit branch whose rank follows space-time complexity.

    W = W_r + L1 L2        y = Qa(x H) Qw(H^T W_r) + L1 L2 x + b + b_align

Calibration is on pairs (inputs of the denoiser, the teacher's epsilon) from the teacher's own sampling, in three
stages: ranks by spatio-temporal complexity (STCA), the branch trained beside the low bits (dual-branch refinement),
then a bias for each output channel (learnable bias alignment, LBA).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from quantsr.errors import UserError
from quantsr.methods.distributed import gathered, is_first
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.quantvsr.allocation import Allocation, allocate, check_options
from quantsr.methods.quantvsr.complexity import ComplexityProbe, merge
from quantsr.methods.quantvsr.report import draw, print_allocation, write_csv
from quantsr.methods.stages import Batch, Group, Stage, drop_half_way
from quantsr.quant.calibrate import mode, quantized_modules, settle
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import own_rank
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Noisy, Teacher


class QuantVSR(QuantizationMethod):
    """STCA, dual-branch refinement and LBA. The defaults are the paper's (section 4.1).

    On an image teacher temporal complexity is 0 and drops out of the allocation.

    Args:
        teacher, bits, parts, attention, seed: see :class:`QuantizationMethod`. The calibration pairs are of the
            denoiser, so that no other part can be quantized. The paper leaves the products of attention alone; with
            them, they have dynamic bounds per token (our choice).
        pairs: number of calibration pairs.
        complexity_steps: batches of pairs that complexities are measured on; 0 gives every layer ``smallest_rank``.
        percentile: lower quantile of the complexities; the upper is 1 - percentile.
        smallest_rank, largest_rank, rank_multiple: see :func:`allocate`.
        refinement_steps: training steps of L1 and L2.
        refinement_lr: AdamW's learning rate there.
        alignment_steps: training steps of b_align; 0 for none.
        alignment_lr: AdamW's learning rate there.

    Raises:
        UserError: no pairs, another part than the denoiser, or options of the ranks out of their range.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = ("denoiser",),
        attention: bool = False,
        pairs: int = 1800,
        complexity_steps: int = 1800,
        percentile: float = 0.25,
        smallest_rank: int = 16,
        largest_rank: int = 64,
        rank_multiple: int = 8,
        refinement_steps: int = 900,
        refinement_lr: float = 1e-3,
        alignment_steps: int = 900,
        alignment_lr: float = 1e-3,
        seed: int = 0,
    ):
        if pairs < 1:
            raise UserError(f"method.pairs must be at least 1, not {pairs}")
        if list(parts) != ["denoiser"]:
            raise UserError(
                f"QuantVSR is calibrated on pairs of the denoiser: method.parts is [denoiser], not {list(parts)}"
            )
        check_options(percentile, smallest_rank, largest_rank, rank_multiple)
        self.complexity_steps, self.smallest_rank = complexity_steps, smallest_rank
        self.rank_rule = (percentile, smallest_rank, largest_rank, rank_multiple)
        self.refinement_steps, self.alignment_steps = refinement_steps, alignment_steps
        self.lr = {"refinement": refinement_lr, "alignment": alignment_lr}
        super().__init__(teacher, bits, parts, attention=attention, seed=seed)
        self.calibration_pairs = pairs
        self.allocation: Allocation | None = None
        self.layers = {name: m for name, m in quantized_modules(self.student) if isinstance(m, QuantizedLayer)}
        self.probe = ComplexityProbe(self.layers, teacher.frames)
        if not complexity_steps:
            self.find_weight_ranges()

    @property
    def pairs(self) -> int:
        return self.calibration_pairs

    # The layer.

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", momentum=None),
            act=AffineSpec(bits.act, range="dynamic"),
            rotation=True,
            rank=self.smallest_rank,
            channel_split=True,
            bias_alignment=True,
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="dynamic", granularity="token"))

    def exceptions(self, part: str) -> list[str]:
        """The first and last convolution and the time embedding's first layer."""
        return [self.teacher.entrance, *super().exceptions(part)]

    def exception_recipe(self, part: str) -> None:
        """Full precision."""

    # The stages.

    def stages(self) -> list[Stage]:
        branches = [p for layer in self.layers.values() for p in layer.low_rank.parameters()]
        biases = [layer.bias_alignment for layer in self.layers.values()]
        return [
            Stage("complexity", self.complexity_steps, self.observe_complexity, finish=self.allocate_ranks),
            self.training_stage("refinement", self.refinement_steps, branches),
            self.training_stage("alignment", self.alignment_steps, biases),
        ]

    def training_stage(self, name: str, steps: int, parameters: list[torch.nn.Parameter]) -> Stage:
        """Parameters against the teacher's epsilon."""
        groups = [Group(parameters, self.lr[name])]
        return Stage(name, steps, self.epsilon_loss, groups, drop_half_way, optimizer=AdamW)

    @torch.no_grad()
    def observe_complexity(self, batch: Batch) -> None:
        """Note how much the input of every layer varies, in full precision."""
        with mode(self.student, "full_precision"), self.probe:
            self.student.denoise(batch["latent"], noisy_of(batch))

    def epsilon_loss(self, batch: Batch) -> Tensor:
        """Mean squared error of epsilon."""
        return F.mse_loss(self.student.denoise(batch["latent"], noisy_of(batch)), batch["epsilon"])

    # Ranks.

    def allocate_ranks(self) -> None:
        """Give every branch the rank that its layer's complexities ask for; layers without any keep the smallest."""
        samples = merge(gathered(self.probe.samples))
        limits = {name: own_rank(layer.weight) for name, layer in self.layers.items()}
        self.set_allocation(allocate(samples, *self.rank_rule, limits))
        self.find_weight_ranges()

    def set_allocation(self, allocation: Allocation) -> None:
        """Resize the branches, here and in what the artefact will say of the layers."""
        self.allocation = allocation
        for name, rank in allocation.real_ranks.items():
            layer = self.layers[name]
            layer.low_rank.resize(layer.weight, rank)
            layer.recipe = replace(layer.recipe, rank=rank)
        ranks = allocation.real_ranks
        self.swaps = [replace(s, recipe=self.layers[s.name].recipe) if s.name in ranks else s for s in self.swaps]

    def find_weight_ranges(self) -> None:
        """Extremes of the rotated residual weights: all that is static in these layers."""
        for layer in self.layers.values():
            layer.weight_quantizer.record(layer.transformed_weight())
        settle(self.student)

    # What the run keeps and shows.

    def save_extras(self, folder: Path) -> dict[str, Path]:
        if self.allocation is None:
            return {}
        table, picture = folder / "ranks.csv", folder / "ranks.png"
        write_csv(self.allocation, table)
        draw(self.allocation, "complexity of the layers' inputs, and their ranks", picture)
        print_allocation(self.allocation, "ranks by complexity")
        return {"ranks": picture, "ranks_table": table}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "ranks": list(self.rank_rule)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["quantsr"]["allocation"] = None if self.allocation is None else self.allocation.to_dict()
        # Ranks that are allocated do not need them again.
        checkpoint["quantsr"]["complexities"] = {} if self.allocation else merge(gathered(self.probe.samples))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["quantsr"]
        # Those of all devices: one of them goes on with them.
        self.probe.samples = kept["complexities"] if is_first() else {}
        if kept["allocation"] is not None:
            self.set_allocation(Allocation.from_dict(kept["allocation"]))
        super().on_load_checkpoint(checkpoint)


def noisy_of(batch: Batch) -> Noisy | None:
    """Where the sampling is that a batch of calibration pairs comes from."""
    return Noisy(batch["noisy"], batch["step"]) if "noisy" in batch else None
