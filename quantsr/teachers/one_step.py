"""The one-step image teacher (OSEDiff, arXiv 2406.08177, in the prompt-free form of PassionSR, arXiv 2411.17106).

    z_L = s * E(up(lq))    eps = UNet(z_L, t, c)    z_H = (z_L - sqrt(1 - abar_t) eps) / sqrt(abar_t)    sr = D(z_H / s)

with one constant prompt embedding c. The VAE and the UNet are diffusers' own classes at any size.

Images larger than a tile go through encoder, UNet and decoder in overlapping tiles under Gaussian weights: memory then
grows by no more than a few copies of the image. OSEDiff's released code does so with the latent, in tiles of 96 that
overlap by 32, and takes larger tiles for the VAE (1024 image pixels, 224 latent pixels). Our choice: tiles of one size
for all three, as the VAE's features are by far the largest, by default with Stable Diffusion's VAE latent tiles of 64
that overlap by 32, as StableSR has them; and group norms with the statistics of the whole image, see
:mod:`quantsr.normalization`.
"""

import math
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from quantsr.color import COLOR_FIXES, fix_color
from quantsr.enlarging import KERNELS, bicubic
from quantsr.errors import UserError
from quantsr.normalization import by_tiles
from quantsr.teachers.base import Noisy, Teacher, dtype_of
from quantsr.teachers.blocks import blocks_of, concatenations
from quantsr.tiling import tile_starts

STABLE_DIFFUSION_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DENOISER_STRIDE, VAE_STRIDE = Fraction(1, 2), Fraction(3, 4)
"""As parts of a tile. The VAE's is our choice: its tiles overlap by a quarter."""


class OneStepTeacher(Teacher):
    """One denoising step between a VAE's encoder and decoder.

    Args:
        vae: arguments of diffusers' ``AutoencoderKL``.
        unet: arguments of diffusers' ``UNet2DConditionModel`` (epsilon prediction).
        timestep: the single step t, 0 to 999.
        schedule: arguments of diffusers' ``DDPMScheduler`` that define abar_t; Stable Diffusion's by default.
        prompt_tokens: length of the constant prompt embedding ``(1, prompt_tokens, cross_attention_dim)``, which is
            part of the weights.
        color_fix: correction of the output's colours against the input: ``none``, ``adain`` or ``wavelet``.
        scale: upscaling factor.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        tile: side in output pixels of the tiles that larger images go through in, a multiple of :attr:`size_multiple`.
            Smaller tiles take less memory and more time. It can be set later (``teacher.tile = 256``).

            A quantized student sees its input by the tile, too: static ranges and learned ones are as they are, dynamic
            ones are those of a tile (per tensor) or of a token in it. Attention in the middle of the VAE, whose scale
            for the keys has a length (:class:`quantsr.quant.attention.PairScale`), meets tiles of one size however
            large the image is, if no side is shorter than a tile: calibrated on crops of that size it is not resampled.
        bicubic: whose interpolation enlarges the input, ``torch`` or ``pillow``, see :func:`quantsr.enlarging.bicubic`.

    Attributes:
        tile_batch: tiles that go through a network at a time: memory of as many tiles, and nothing that a file keeps. A
            student whose ranges are dynamic per tensor sees more than one as one tensor, see
            :func:`quantsr.upscaling.takes_batches`.

    Raises:
        ValueError: a timestep that the schedule does not have, an unknown colour correction or interpolation.
        UserError: another dtype, or a tile of another size.
    """

    kind = "one_step"

    def __init__(
        self,
        vae: dict[str, Any],
        unet: dict[str, Any],
        timestep: int = 999,
        schedule: dict[str, Any] | None = None,
        prompt_tokens: int = 77,
        color_fix: str = "adain",
        scale: int = 4,
        dtype: str = "float32",
        tile: int = 512,
        bicubic: str = "torch",
    ):
        super().__init__()
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be one of {COLOR_FIXES}, not {color_fix!r}")
        if bicubic not in KERNELS:
            raise ValueError(f"bicubic must be one of {KERNELS}, not {bicubic!r}")
        schedule = dict(schedule or STABLE_DIFFUSION_SCHEDULE)
        self.config = {
            "vae": dict(vae),
            "unet": dict(unet),
            "timestep": timestep,
            "schedule": schedule,
            "prompt_tokens": prompt_tokens,
            "color_fix": color_fix,
            "scale": scale,
            "dtype": dtype,
            "bicubic": bicubic,
        }
        self.vae = AutoencoderKL(**vae)
        self.unet = UNet2DConditionModel(**unet)
        self.color_fix, self.scale, self.tile = color_fix, scale, tile
        self.tile_batch = 1
        with torch.device("cpu"):  # Values are needed, also where weights are not.
            self.abars: list[float] = DDPMScheduler(**schedule).alphas_cumprod.tolist()
        self.retime(timestep)
        self.register_buffer("prompt_embedding", torch.randn(1, prompt_tokens, self.unet.config.cross_attention_dim))
        self.to(dtype_of(dtype))

    def retime(self, timestep: int) -> "OneStepTeacher":
        """Run the single step at another t; the weights stay as they are. Returns self.

        Raises:
            ValueError: a timestep that the schedule does not have.
        """
        if not 0 <= timestep < len(self.abars):
            raise ValueError(f"timestep must be from 0 to {len(self.abars) - 1}, not {timestep}")
        self.timestep = self.config["timestep"] = timestep
        abar = self.abars[timestep]
        self.signal, self.noise = math.sqrt(abar), math.sqrt(1 - abar)
        return self

    @property
    def latent_factor(self) -> int:
        """How many image pixels one latent pixel spans."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Image sizes are padded to a multiple of this: the VAE's factor times the UNet's own downsampling."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def tile(self) -> int:
        """Side of the tiles of larger images, in output pixels."""
        return self.config["tile"]

    @tile.setter
    def tile(self, side: int) -> None:
        if not isinstance(side, int) or side < 1 or side % self.size_multiple:
            raise UserError(f"tile takes a multiple of {self.size_multiple} output pixels, not {side!r}")
        self.config["tile"] = side

    def tiles(self, height: int, width: int) -> int:
        """How many tiles an output of that size takes, in all networks together."""
        size = self._latent_tile
        sides = [-(-side // self.size_multiple) * self.size_multiple // self.latent_factor for side in (height, width)]

        def count(stride: int) -> int:
            return math.prod(len(tile_starts(side, size, stride)) for side in sides)

        if max(sides) <= size:
            return len(self.networks)
        strides = [self._stride(part) for part in (VAE_STRIDE, DENOISER_STRIDE, VAE_STRIDE)]
        return sum(count(size) + count(stride) for stride in strides)

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """What tiles go through, one after the other."""
        return self.vae.encoder, self.unet, self.vae.decoder

    @property
    def _latent_tile(self) -> int:
        return self.tile // self.latent_factor

    def _stride(self, part: Fraction) -> int:
        """A part of a tile, in latent pixels."""
        return max(int(part * self._latent_tile), 1)

    def upscale(self, lq: Tensor) -> Tensor:
        """Bicubic upscaling, ``(b, 3, h, w)`` to ``(b, 3, scale*h, scale*w)``, in [0, 1]."""
        return bicubic(lq, self.scale, self.config["bicubic"])

    def embed(self, image: Tensor) -> Tensor:
        """An image in [0, 1] of any size to its latent: reflect-padded to ``size_multiple``, posterior mean, scaled.

        The mean and not a sample (our choice): teacher and student then see the same latent.
        """
        height, width = image.shape[-2:]
        pad = (-width % self.size_multiple, -height % self.size_multiple)
        if any(pad):
            mode = "reflect" if pad[0] < width and pad[1] < height else "replicate"
            image = F.pad(image, (0, pad[0], 0, pad[1]), mode=mode)

        def encode(tile: Tensor) -> Tensor:
            return self.vae.encode((tile * 2 - 1).to(self.dtype)).latent_dist.mode().to(tile.dtype)

        factor = self.latent_factor
        sizes = self.tile, factor * self._stride(VAE_STRIDE)
        latent = by_tiles(self.vae.encoder, encode, image, *sizes, Fraction(1, factor), self.tile_batch)
        return latent * self.vae.config.scaling_factor

    def encode(self, lq: Tensor) -> Tensor:
        return self.embed(self.upscale(lq))

    def denoise(self, latent: Tensor, noisy: Noisy | None = None) -> Tensor:
        def predict(tile: Tensor) -> Tensor:
            x, context = tile.to(self.dtype), self.prompt_embedding.expand(len(tile), -1, -1)
            return self.unet(x, self.timestep, encoder_hidden_states=context, return_dict=False)[0].to(tile.dtype)

        sizes = self._latent_tile, self._stride(DENOISER_STRIDE)
        return by_tiles(self.unet, predict, latent, *sizes, batch=self.tile_batch)

    def clean(self, latent: Tensor, epsilon: Tensor, noisy: Noisy | None = None) -> Tensor:
        return (latent - self.noise * epsilon) / self.signal

    def decode(self, latent: Tensor, lq: Tensor) -> Tensor:
        def decode(tile: Tensor) -> Tensor:
            return self.vae.decode(tile.to(self.dtype), return_dict=False)[0].to(tile.dtype) / 2 + 0.5

        latent, sizes = latent / self.vae.config.scaling_factor, (self._latent_tile, self._stride(VAE_STRIDE))
        return by_tiles(self.vae.decoder, decode, latent, *sizes, self.latent_factor, self.tile_batch)

    def render(self, latent: Tensor, lq: Tensor) -> Tensor:
        """z_H to the output image: decoded, cut to ``scale`` times the size of ``lq``, colours corrected."""
        height, width = (self.scale * side for side in lq.shape[-2:])
        return fix_color(self.decode(latent, lq)[..., :height, :width], self.upscale(lq), self.color_fix)

    def features(self, image: Tensor) -> list[Tensor]:
        x = self.vae.encoder.conv_in((image * 2 - 1).to(self.dtype))
        found = []
        for block in self.vae.encoder.down_blocks:
            x = block(x)
            found.append(x)
        return found

    @property
    def entrance(self) -> str:
        return "unet.conv_in"

    @property
    def exit(self) -> str:
        return "unet.conv_out"

    def parts(self) -> dict[str, list[str]]:
        return {
            "encoder": ["vae.encoder", "vae.quant_conv"],
            "denoiser": ["unet"],
            "decoder": ["vae.post_quant_conv", "vae.decoder"],
        }

    def sensitive(self) -> dict[str, list[str]]:
        return {
            "encoder": ["vae.quant_conv", "vae.encoder.conv_out"],
            "denoiser": ["unet.time_embedding.linear_1", "unet.conv_out"],
            "decoder": ["vae.post_quant_conv", "vae.decoder.conv_out"],
        }

    def blocks(self) -> dict[str, list[str]]:
        return {
            "encoder": [*self._blocks_of("vae.encoder"), "vae.quant_conv"],
            "denoiser": ["unet.time_embedding", *self._blocks_of("unet")],
            "decoder": ["vae.post_quant_conv", *self._blocks_of("vae.decoder")],
        }

    def concatenations(self) -> dict[str, int]:
        return {f"unet.{name}": channels for name, channels in concatenations(self.unet).items()}

    def _blocks_of(self, network: str) -> list[str]:
        return [f"{network}.{name}" for name in blocks_of(self.get_submodule(network))]
