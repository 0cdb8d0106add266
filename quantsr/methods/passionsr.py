"""PassionSR (arXiv 2411.17106): learnable boundaries, learnable equivalent transforms, distributed calibration.

    y = Qa((x - o) / s) * Qw(W s) + W * o + b          Qa(q d_qk) Qa(k / d_qk)^T, Qa(p d_vw) Qa(v / d_vw)

The bounds of every quantizer are trained (LBQ, section 3.2), and so are s, o, d_qk and d_vw (LET, section 3.3). The
parts are calibrated one after the other, encoder, denoiser, decoder, and in each first the transforms, then the
bounds (DQC, section 3.4).
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.methods.quantization import PARTS, QuantizationMethod
from quantsr.methods.stages import Batch, Group, Stage, drop_half_way
from quantsr.quant.attention import PairScale
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.quant.transforms import Smoothing
from quantsr.teachers.base import Teacher


class PassionSR(QuantizationMethod):
    """LBQ, LET and DQC.

    Args:
        teacher, bits, parts, observation_steps, attention, seed: see :class:`QuantizationMethod`.
        alpha: exponent of the initial scales (section 4.1: 0.3).
        steps: training steps of every stage (the paper: 2 epochs over 500 images).
        observation_batch: samples of a calibration batch, where training takes another number (the authors' code: 4,
            and 1 in training).
        transform_lr: Adam's learning rate for s, o, d_qk, d_vw.
        bounds_lr: the same for the bounds. Both 1e-5 in the paper.
        drop: factor of both in the second half of a stage, the second epoch (the authors' configurations: 0.2 with the
            VAE, 0.1 for the UNet alone).
        relative_lr: make both relative to each tensor's size, see :class:`Stage` (the paper: no).
        quantize_bias: quantize biases per tensor too, as the authors' code does.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        observation_batch: int | None = None,
        attention: bool = True,
        alpha: float = 0.3,
        steps: int = 1000,
        transform_lr: float = 1e-5,
        bounds_lr: float = 1e-5,
        drop: float = 0.2,
        relative_lr: bool = False,
        quantize_bias: bool = False,
        seed: int = 0,
    ):
        self.alpha, self.quantize_bias = alpha, quantize_bias
        self.stage_steps, self.relative_lr = steps, relative_lr
        self.transform_lr, self.bounds_lr, self.drop = transform_lr, bounds_lr, drop
        self.observation_batch = observation_batch
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", range="learned"),
            act=AffineSpec(bits.act, range="learned"),
            smoothing=self.alpha,
            offset=True,
            channel_split=part == "denoiser",  # UNet layers are split, VAE layers are not.
            quantize_bias=self.quantize_bias,
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="learned"), smoothing=self.alpha)

    def stages(self) -> list[Stage]:
        losses = {"encoder": self.latent_loss, "denoiser": self.clean_latent_loss, "decoder": self.image_loss}
        stages = self.observation_stages()
        for part in self.parts:
            for name, kinds, lr in (
                ("transforms", (Smoothing, PairScale), self.transform_lr),
                ("bounds", (Quantizer,), self.bounds_lr),
            ):
                groups = [Group(self.parameters_of(part, kinds), lr)]
                schedule = (partial(drop_half_way, factor=self.drop), self.relative_lr)
                stages.append(Stage(f"{part}.{name}", self.stage_steps, losses[part], groups, *schedule))
        return stages

    def parameters_of(self, part: str, kinds: tuple[type[nn.Module], ...]) -> list[nn.Parameter]:
        """Parameters of all modules of some kinds in a part."""
        owners = [self.student.get_submodule(prefix) for prefix in self.teacher.parts()[part]]
        modules = [m for owner in owners for m in owner.modules() if isinstance(m, kinds)]
        return [parameter for module in modules for parameter in module.parameters()]

    # Each part is compared with the teacher's at its own output; what precedes it in the student is already quantized.

    def latent_loss(self, batch: Batch) -> Tensor:
        """Encoder: latent against latent."""
        with torch.no_grad():
            target = self.teacher.encode(batch["lq"])
        return F.mse_loss(self.student.encode(batch["lq"]), target)

    def clean_latent_loss(self, batch: Batch) -> Tensor:
        """Denoiser: z_H against z_H, not epsilon against epsilon (section 3.4)."""
        noisy = self.noisy(batch)
        with torch.no_grad():
            latent = self.teacher.encode(batch["lq"])
            target = self.teacher.clean(latent, self.teacher.denoise(latent, noisy), noisy)
            latent = self.student.encode(batch["lq"])
        return F.mse_loss(self.student.clean(latent, self.student.denoise(latent, noisy), noisy), target)

    def image_loss(self, batch: Batch) -> Tensor:
        """Decoder: image against image."""
        with torch.no_grad():
            target = self.teacher.decode(self.teacher.clean_latent(batch["lq"]), batch["lq"])
            latent = self.student.clean_latent(batch["lq"])
        return F.mse_loss(self.student.decode(latent, batch["lq"]), target)
