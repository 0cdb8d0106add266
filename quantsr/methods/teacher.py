"""``method=teacher``: train or fine-tune a full-precision teacher, as latent diffusion is trained: first the
autoencoder, then the denoiser in its latent space, with the autoencoder frozen.

    autoencoder   |D(E(gt)) - gt| + variance * (mean E(gt)^2 - 1)^2
    teacher       pixel * |sr - gt| + feature * d(sr, gt) + latent * |z_H - E(gt)|^2

d is measured in the features of the encoder as it was at the start of the run. A teacher of several steps trains at
the points of its own sampling, one step after the other (our choice: the denoiser meets its own errors, and learns to
restore what is there; diffusion's own training, on noised ground truth, is for models that invent).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from quantsr.errors import UserError
from quantsr.losses import EncoderFeatures
from quantsr.methods.base import StagedModule
from quantsr.methods.stages import Batch, Group, Stage, warm_cosine
from quantsr.teachers.base import Teacher


class TeacherTraining(StagedModule):
    """Trains a teacher.

    The denoiser trains with the autoencoder frozen: trained together, the autoencoder restores the image by itself
    and leaves nothing to the denoiser, and a student with a quantized denoiser shows nothing.

    Args:
        teacher: where to start from; it is left as it is, the trained copy is ``model``.
        steps: training steps of the denoiser.
        lr: peak learning rate of AdamW, warmed up and decayed by half a cosine.
        pixel: weight of the L1 distance between image and ground truth.
        feature: weight of the distance in frozen encoder features.
        latent: weight of the squared distance between z_H and the ground truth's own latent.
        autoencoder_steps: training steps of the autoencoder; 0 keeps the teacher's.
        autoencoder_lr: peak learning rate there.
        variance: weight of (mean z^2 - 1)^2 there: latents get the unit variance that diffusion's schedules assume.
        max_norm: gradient clipping.
    """

    needs_gt = True

    def __init__(
        self,
        teacher: Teacher,
        steps: int = 1000,
        lr: float = 1e-3,
        pixel: float = 1.0,
        feature: float = 0.0,
        latent: float = 0.0,
        autoencoder_steps: int = 0,
        autoencoder_lr: float = 1e-3,
        variance: float = 0.01,
        max_norm: float = 1.0,
    ):
        # Teachers are loaded frozen; DDP takes in what can train when it is set up, before the first stage.
        super().__init__(teacher, deepcopy(teacher).requires_grad_(True))
        self.training_steps, self.lr, self.max_norm = steps, lr, max_norm
        self.autoencoder_steps, self.autoencoder_lr, self.variance = autoencoder_steps, autoencoder_lr, variance
        self.weights = {"pixel": pixel, "feature": feature, "latent": latent}
        self.features = EncoderFeatures(teacher.features) if feature else None

    def stages(self) -> list[Stage]:
        parts = self.teacher.parts()
        autoencoder = [*parts["encoder"], *parts["decoder"]]
        denoiser = [*parts["denoiser"], *self.teacher.kept()]
        return [
            self._stage("autoencoder", self.autoencoder_steps, self.autoencoder_loss, autoencoder, self.autoencoder_lr),
            self._stage("teacher", self.training_steps, self.loss, denoiser, self.lr),
        ]

    def _stage(
        self, name: str, steps: int, loss: Callable[[Batch], Tensor], modules: Sequence[str], lr: float
    ) -> Stage:
        optimizer = partial(AdamW, betas=(0.9, 0.99), weight_decay=1e-4)
        groups = [Group([p for module in modules for p in self.model.get_submodule(module).parameters()], lr)]
        return Stage(name, steps, loss, groups, warm_cosine, optimizer=optimizer, max_norm=self.max_norm)

    def offload_parts(self) -> None:
        raise UserError("method=teacher trains the weights, which can therefore not wait elsewhere: leave offload out")

    def models(self) -> dict[str, Teacher]:
        return {"teacher": self.model}

    def autoencoder_loss(self, batch: Batch) -> Tensor:
        """Reconstruction of the ground truth, from latents of unit variance.

        The output's colours are corrected as in the whole model (our choice): the latent need not carry them.
        """
        lq, gt = batch["lq"], batch["gt"]
        latent = self.model.embed(gt)
        variance = (latent.float().square().mean() - 1).square()
        return F.l1_loss(self.model.render(latent, lq).float(), gt) + self.variance * variance

    def loss(self, batch: Batch) -> Tensor:
        """Super-resolution of the low-quality image."""
        lq, gt = batch["lq"], batch["gt"]
        model, weights = self.model, self.weights
        with torch.no_grad():
            latent = model.encode(lq)
            noisy = model.noisy(lq, self.step_index % model.steps)
        clean = model.clean(latent, model.denoise(latent, noisy), noisy)
        loss = latent.new_zeros(())
        if weights["pixel"] or self.features is not None:
            sr = model.render(clean, lq).float()
            loss = loss + weights["pixel"] * F.l1_loss(sr, gt)
            if self.features is not None:
                loss = loss + weights["feature"] * self.features(sr, gt)
        if weights["latent"]:
            with torch.no_grad():
                target = model.embed(gt)
            loss = loss + weights["latent"] * F.mse_loss(clean, target)
        return loss
