"""``method=teacher``: train or fine-tune a full-precision one-step teacher.

    loss = pixel * |sr - gt| + feature * d(sr, gt) + latent * |z_H - E(gt)|^2

d is measured in the features of the encoder as it was at the start of the run.
"""

from copy import deepcopy
from functools import partial

import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from quantsr.losses import EncoderFeatures
from quantsr.methods.base import StagedModule
from quantsr.methods.stages import Batch, Group, Stage, warm_cosine
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher


class TeacherTraining(StagedModule):
    """Trains all of a one-step teacher.

    Args:
        teacher: where to start from; it is left as it is, the trained copy is ``model``.
        steps: training steps.
        lr: peak learning rate of AdamW, warmed up and decayed by half a cosine.
        pixel: weight of the L1 distance between image and ground truth.
        feature: weight of the distance in frozen encoder features.
        latent: weight of the squared distance between z_H and the ground truth's own latent (no gradient to the
            latter).
        max_norm: gradient clipping.
    """

    def __init__(
        self,
        teacher: OneStepTeacher,
        steps: int = 1000,
        lr: float = 1e-3,
        pixel: float = 1.0,
        feature: float = 0.0,
        latent: float = 0.0,
        max_norm: float = 1.0,
    ):
        super().__init__(teacher, deepcopy(teacher))
        self.training_steps, self.lr, self.max_norm = steps, lr, max_norm
        self.weights = {"pixel": pixel, "feature": feature, "latent": latent}
        self.features = EncoderFeatures(teacher.vae.encoder) if feature else None

    def stages(self) -> list[Stage]:
        return [
            Stage(
                "teacher",
                self.training_steps,
                self.loss,
                [Group(list(self.model.parameters()), self.lr)],
                warm_cosine,
                optimizer=partial(AdamW, betas=(0.9, 0.99), weight_decay=1e-4),
                max_norm=self.max_norm,
            )
        ]

    def models(self) -> dict[str, Teacher]:
        return {"teacher": self.model}

    def loss(self, batch: Batch) -> Tensor:
        lq, gt = batch["lq"], batch["gt"]
        model, weights = self.model, self.weights
        latent = model.encode(lq)
        clean = model.clean(latent, model.denoise(latent))
        sr = model.render(clean, lq).float()
        loss = weights["pixel"] * F.l1_loss(sr, gt)
        if self.features is not None:
            loss = loss + weights["feature"] * self.features(sr, gt)
        if weights["latent"]:
            loss = loss + weights["latent"] * F.mse_loss(clean, model.embed(gt).detach())
        return loss
