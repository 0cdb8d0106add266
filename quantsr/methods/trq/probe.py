"""Measuring what quantization costs at a timestep, before anything is calibrated or trained (TRQ of QArtSR)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantsr.methods.quantization import SENSITIVE_BITS
from quantsr.quant.calibrate import mode, quantized_modules, settle, uncalibrated
from quantsr.quant.prepare import prepare
from quantsr.quant.recipe import LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.one_step import OneStepTeacher


class TimestepProbe:
    """A full-precision and an untrained quantized copy of a teacher, which share its weights and run at any timestep.

    The student quantizes the layers of the denoiser alone: weights by their extremes per output channel, activations by
    ranges found at every call, so that none is bound to a timestep (our choice, for a curve without calibration).

    Args:
        teacher: left as it is.
        bits: widths of the student.
    """

    def __init__(self, teacher: OneStepTeacher, bits: Bits):
        self.teacher = teacher
        self.full: OneStepTeacher = teacher.twin()
        self.student: OneStepTeacher = teacher.twin()
        prepare(self.student, student_rules(teacher, bits))

    def to(self, device: torch.device) -> None:
        """Move to where the teacher is: twins share its parameters, but hold buffers of their own."""
        self.full.to(device)
        self.student.to(device)

    @torch.no_grad()
    def measure(self, lq: Tensor, timesteps: Sequence[int]) -> Tensor:
        """Mean squares at ``timesteps`` for a batch ``(b, 3, h, w)``: ``(timesteps, 3)``, of the errors of
        z_H and of epsilon, and of the needed epsilon (see :class:`quantsr.methods.trq.curve.Point`).

        In float32 and image by image: the ranges of activations, and so the result, then depend neither on the batch
        size nor on the number of devices.
        """
        with torch.autocast(lq.device.type, enabled=False):
            images = [self._measure_image(image, timesteps) for image in lq.split(1)]
        return torch.stack(images).mean(0)

    def _measure_image(self, lq: Tensor, timesteps: Sequence[int]) -> Tensor:
        latent = self.teacher.encode(lq)
        target = self.teacher.clean(latent, self.teacher.denoise(latent))
        if uncalibrated(quantized_modules(self.student)):  # Ranges of weights, the same on every device.
            with mode(self.student, "observe_ranges"):
                self.student.denoise(latent)
            settle(self.student)
        return torch.stack([self._measure_at(t, latent, target) for t in timesteps])

    def _measure_at(self, timestep: int, latent: Tensor, target: Tensor) -> Tensor:
        full, student = self.full.retime(timestep), self.student.retime(timestep)
        exact, quantized = full.denoise(latent), student.denoise(latent)
        clean_error = student.clean(latent, quantized) - full.clean(latent, exact)
        needed = (latent - full.signal * target) / full.noise
        return torch.stack([t.square().mean() for t in (clean_error, quantized - exact, needed)])


def student_rules(teacher: OneStepTeacher, bits: Bits) -> list[Rule]:
    """Sensitive layers of the denoiser at 8 bits, its other layers at ``bits``, the VAE kept."""
    parts = teacher.parts()
    sensitive = [Rule(name, layer_recipe(bits.at_least(SENSITIVE_BITS))) for name in teacher.sensitive()["denoiser"]]
    denoiser = [Rule(f"{prefix}*", layer_recipe(bits)) for prefix in parts["denoiser"]]
    return sensitive + denoiser + [Rule(f"{prefix}*") for part in ("encoder", "decoder") for prefix in parts[part]]


def layer_recipe(bits: Bits) -> LayerRecipe:
    """Weights per output channel, activations per tensor and call."""
    weight = AffineSpec(bits.weight, granularity="channel", momentum=None)
    return LayerRecipe(weight=weight, act=AffineSpec(bits.act, range="dynamic"))
