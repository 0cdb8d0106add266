"""The three networks of a one-step image model, as modules to convert and as models in their place."""

import openvino as ov
import torch
from torch import Tensor, nn

from quantsr.deploy.openvino.networks import CompiledNetwork
from quantsr.teachers.one_step import OneStepTeacher


class Encoder(nn.Module):
    """Image to the moments of its latent, as ``vae.encoder`` with ``vae.quant_conv`` behind it."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.encoder, self.quant_conv = student.vae.encoder, student.vae.quant_conv or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))


class Denoiser(nn.Module):
    """Latent to epsilon at the student's timestep and prompt."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.unet, self.timestep, self.prompt = student.unet, student.timestep, student.prompt_embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.unet(x, self.timestep, encoder_hidden_states=self.prompt, return_dict=False)[0]


class Decoder(nn.Module):
    """Latent to image, as ``vae.decoder`` behind ``vae.post_quant_conv``."""

    def __init__(self, student: OneStepTeacher):
        super().__init__()
        self.post_quant_conv, self.decoder = student.vae.post_quant_conv or nn.Identity(), student.vae.decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(x))


NETWORKS = {"encoder": Encoder, "denoiser": Denoiser, "decoder": Decoder}
"""By the part of the student that they are."""


def example(student: OneStepTeacher, part: str, side: int) -> tuple[Tensor]:
    """A random input of a part, ``side`` latent pixels wide and high."""
    generator = torch.Generator().manual_seed(0)
    if part == "encoder":
        return (torch.rand(1, 3, *[side * student.latent_factor] * 2, generator=generator),)
    return (torch.randn(1, student.vae.config.latent_channels, side, side, generator=generator),)


def substitute(student: OneStepTeacher, found: dict[str, ov.Model], precision: str) -> None:
    """Put models in the place of the networks."""
    student.vae.encoder = CompiledNetwork(found["encoder"], precision)
    student.vae.decoder = CompiledNetwork(found["decoder"], precision)
    student.vae.quant_conv = student.vae.post_quant_conv = None  # They are part of the models.
    student.unet = CompiledNetwork(found["denoiser"], precision, student.unet.config, wrap=True)
