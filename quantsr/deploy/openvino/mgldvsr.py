"""The four networks of MGLD-VSR, as modules to convert and as models in their place.

They take a whole segment of frames at a time. The timestep is an input: the sampling has several.
"""

from collections.abc import Sequence

import openvino as ov
import torch
from einops import repeat
from torch import Tensor, nn

from quantsr.deploy.openvino.networks import CompiledNetwork
from quantsr.teachers.mgldvsr import MGLDVSRTeacher


class Encoder(nn.Module):
    """Frames to the moments of their latents, and to the features that the decoder fuses."""

    def __init__(self, student: MGLDVSRTeacher):
        super().__init__()
        self.encoder, self.quant_conv = student.vae.encoder, student.vae.quant_conv

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        moments, features = self.encoder(x)
        return self.quant_conv(moments), *features


class Structure(nn.Module):
    """Latents at timesteps to the features that modulate the denoiser."""

    def __init__(self, student: MGLDVSRTeacher):
        super().__init__()
        self.structure = student.structure

    def forward(self, latent: Tensor, timesteps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.structure(latent, timesteps))


class Denoiser(nn.Module):
    """Noisy latents to epsilon, with the student's prompt."""

    def __init__(self, student: MGLDVSRTeacher):
        super().__init__()
        self.unet = student.unet
        self.prompt = repeat(student.prompt_embedding, "1 n d -> t n d", t=student.frames)

    def forward(self, x: Tensor, timesteps: Tensor, *structure: Tensor) -> Tensor:
        return self.unet(x, timesteps, structure, self.prompt)


class Decoder(nn.Module):
    """Latents, and features of the encoder, to frames."""

    def __init__(self, student: MGLDVSRTeacher):
        super().__init__()
        self.post_quant_conv, self.decoder = student.vae.post_quant_conv, student.vae.decoder

    def forward(self, latent: Tensor, *features: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latent), features)


NETWORKS = {"encoder": Encoder, "structure": Structure, "denoiser": Denoiser, "decoder": Decoder}
"""By name; the structure encoder is no part of the student, and is not quantized."""


def example(student: MGLDVSRTeacher, part: str, side: int) -> tuple[Tensor, ...]:
    """Random inputs of a network for one segment, ``side`` latent pixels wide and high."""
    generator, frames, config = torch.Generator().manual_seed(0), student.frames, student.config

    def random(channels: int, pixels: int) -> Tensor:
        return torch.randn(frames, channels, pixels, pixels, generator=generator)

    vae, unet = config["vae"], config["unet"]
    if part == "encoder":
        return (random(3, side * student.vae.factor),)
    latent = random(student.unet.latent_channels, side)
    if part == "decoder":
        widths = [vae["base_channels"] * multiplier for multiplier in vae["channel_multipliers"]]
        inner = range(1, len(widths) - 1)
        return latent, *(random(widths[level], side * student.vae.factor // 2**level) for level in inner)
    timesteps = torch.full((frames,), float(student.schedule.timesteps[0]))
    if part == "structure":
        return latent, timesteps
    levels = range(len(unet["channel_multipliers"]))
    return latent, timesteps, *(random(unet["structure_channels"], side // 2**level) for level in levels)


def substitute(student: MGLDVSRTeacher, found: dict[str, ov.Model], precision: str) -> None:
    """Put models in the place of the networks."""
    vae = student.vae
    vae.encoder, vae.decoder = (
        _Encoder(CompiledNetwork(found["encoder"], precision)),
        CompiledNetwork(found["decoder"], precision),
    )
    vae.quant_conv = vae.post_quant_conv = nn.Identity()  # They are part of the models.
    student.structure = CompiledNetwork(found["structure"], precision)
    student.unet = CompiledNetwork(found["denoiser"], precision)


class _Encoder(nn.Module):
    """A model in the place of the autoencoder's encoder, which tells moments from features."""

    def __init__(self, network: CompiledNetwork):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        moments, *features = self.network(images)
        return moments, features
