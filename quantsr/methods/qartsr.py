"""QArtSR (arXiv 2503.05584): low-rank branch and low-rank update, modules quantized from last to first, end to end.

    y = L1 (L2 x) + Qa(phi x) * Qw((W - L1 L2 + F1 F2) / phi) + b

L1, L2, F1, F2, phi and all bounds are trained, W never. Reversed per-module quantization (RPQ) calibrates one module
at a time, in full precision before it and quantized after it; extended training (ET) then trains all end to end.
Timestep retraining (TRQ) comes before and makes a teacher: see :mod:`quantsr.methods.trq`.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.losses import perceptual_distance
from quantsr.methods.borders import recorded, replayed, tensor_of
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Batch, Group, Stage, warm_cosine
from quantsr.quant.calibrate import set_mode
from quantsr.quant.low_rank import LowRank, LowRankUpdate
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.quant.transforms import Smoothing
from quantsr.teachers.base import Teacher

Order = Literal["reversed", "forward", "together"]


class QArtSR(QuantizationMethod):
    """RPQ and ET. The paper gives no figures for them: all defaults are our choice.

    Args:
        teacher, bits, observation_steps, attention, seed: see :class:`QuantizationMethod`.
        parts: the paper quantizes the denoiser alone.
        rank: of the 16-bit branch L1 L2, which starts as the SVD of W; 0 for none.
        update_rank: of the update F1 F2, which starts at 0; 0 for none.
        alpha: exponent of the initial 1 / phi = max|x|^alpha / max|W|^alpha; None for no phi.
        order: in which modules are quantized: ``reversed`` (RPQ); ``forward``, from the first to the last, or all
            ``together`` against the image alone are there to be compared with.
        module_steps: training steps for each module (``together``: for as many steps as there are modules).
        extended_steps: training steps end to end; 0 for none.
        image_weight: weight of the image's error beside the module's own.
        perceptual: distance in extended training, ``features`` of the teacher's encoder or ``lpips``.
        perceptual_weight, pixel_weight: a1 and a2 of extended training.
        weight_lr: Adam's learning rate for L1, L2, F1, F2, relative to each tensor's size.
        transform_lr: the same for phi.
        bounds_lr: the same for the bounds.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = ("denoiser",),
        observation_steps: int = 16,
        attention: bool = True,
        rank: int = 32,
        update_rank: int = 32,
        alpha: float | None = 0.5,
        order: Order = "reversed",
        module_steps: int = 100,
        extended_steps: int = 1000,
        image_weight: float = 10.0,
        perceptual: str = "features",
        perceptual_weight: float = 1.0,
        pixel_weight: float = 10.0,
        weight_lr: float = 1e-3,
        transform_lr: float = 1e-3,
        bounds_lr: float = 1e-3,
        seed: int = 0,
    ):
        if order not in get_args(Order):
            raise UserError(f"method.order takes one of {list(get_args(Order))}, not {order!r}")
        self.rank, self.update_rank, self.alpha, self.order = rank, update_rank, alpha, order
        self.module_steps, self.extended_steps = module_steps, extended_steps
        self.image_weight, self.weights = image_weight, (perceptual_weight, pixel_weight)
        self.rates = {"weight": weight_lr, "transform": transform_lr, "bounds": bounds_lr}
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)
        self.perceptual = perceptual

    @cached_property
    def distance(self) -> nn.Module:
        """That of extended training. LPIPS reads its weights, which nothing but training needs."""
        return perceptual_distance(self.perceptual, self.teacher.features)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        if stage == "fit" and self.extended_steps:
            self.distance.eval()  # Weights that are missing stop the run here, before its first step.

    # The layer.

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", range="learned", clipping=True),
            act=AffineSpec(bits.act, range="learned", clipping=True),
            smoothing=self.alpha,
            rank=self.rank,
            update_rank=self.update_rank,
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="learned", clipping=True))

    # The stages.

    def stages(self) -> list[Stage]:
        return [*self.observation_stages(), *self.module_stages(), self.extended_stage()]

    def module_stages(self) -> list[Stage]:
        """RPQ: one stage a module, each training the module and all that are quantized already."""
        if self.order == "together":
            steps = self.module_steps * len(self.blocks)
            return [Stage("together", steps, self.image_error, self.groups(self.blocks), warm_cosine, relative=True)]
        last_to_first = self.order == "reversed"
        stages = []
        blocks = self.blocks
        for number in sorted(range(len(blocks)), reverse=last_to_first):
            name = blocks[number]
            quantized = blocks[number:] if last_to_first else blocks[: number + 1]
            loss = partial(self.module_loss, name, quantized)
            groups = self.groups(quantized)
            stages.append(Stage(f"module {name}", self.module_steps, loss, groups, warm_cosine, relative=True))
        return stages

    def extended_stage(self) -> Stage:
        """ET: all modules against the image."""
        groups = self.groups(self.blocks)
        return Stage("extended", self.extended_steps, self.extended_loss, groups, warm_cosine, relative=True)

    def groups(self, blocks: Sequence[str]) -> list[Group]:
        """What trains in some blocks."""
        kinds = {"weight": (LowRank, LowRankUpdate), "transform": (Smoothing,), "bounds": (Quantizer,)}
        modules = [module for name in blocks for module in self.student.get_submodule(name).modules()]
        return [
            Group([p for m in modules if isinstance(m, kind) for p in m.parameters()], self.rates[name])
            for name, kind in kinds.items()
        ]

    # The losses.

    def module_loss(self, block: str, quantized: Sequence[str], batch: Batch) -> Tensor:
        """|M_q(x) - M_fp(x)|^2 relative to |M_fp(x)|^2, and the image's error through the rest of the model.

        What precedes the first quantized block is the teacher's own output, put in its place: it takes no time and is
        not in the graph. What follows the last one runs in full precision.
        """
        lq, noisy, every = batch["lq"], self.noisy(batch), self.every_block
        before = every[: every.index(quantized[0])]
        with torch.no_grad(), recorded(self.teacher, [*before, block]) as target:
            target_image = self.teacher.predict(lq, noisy)
        set_mode(self.student, "full_precision")
        for name in quantized:
            set_mode(self.student.get_submodule(name), "quantized")
        with replayed(self.student, {name: target[name] for name in before}), recorded(self.student, [block]) as own:
            own_image = self.student.predict(lq, noisy)
        wanted = tensor_of(target[block])
        module = F.mse_loss(tensor_of(own[block]), wanted) / wanted.square().mean()
        return module + self.image_weight * F.mse_loss(own_image, target_image)

    def image_error(self, batch: Batch) -> Tensor:
        """|I_q - I_fp|^2, everything quantized."""
        own, target = self.images(batch)
        return F.mse_loss(own, target)

    def extended_loss(self, batch: Batch) -> Tensor:
        """a1 d(I_q, I_fp) + a2 |I_q - I_fp|^2."""
        own, target = self.images(batch)
        perceptual, pixel = self.weights
        return perceptual * self.distance(own, target) + pixel * F.mse_loss(own, target)

    def images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the whole student predicts, and the teacher."""
        set_mode(self.student, "quantized")
        noisy = self.noisy(batch)
        with torch.no_grad():
            target = self.teacher.predict(batch["lq"], noisy)
        return self.student.predict(batch["lq"], noisy), target

    def summary(self) -> str:
        names = {"features": "features of the teacher's encoder", "lpips": "LPIPS"}
        return f"{super().summary()}\nperceptual distance in extended training: {names[self.perceptual]}"
