"""MGLD-VSR (arXiv 2312.00853): motion-guided latent diffusion, a video teacher of several steps.

    z_L = s * E(up(lq))        x_T = sqrt(abar_T) z_L + sqrt(1 - abar_T) noise
    eps = UNet(x_t, t, structure(z_L, t), c)        x_{t-1} ~ DDPM(x_t, eps), then moved along the flow guidance
    sr = D(z_H / s, features of E(up(lq)))

with one constant prompt embedding c. Clips are restored in segments of ``frames`` frames.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from quantsr.color import COLOR_FIXES, fix_color
from quantsr.enlarging import bicubic
from quantsr.flow import FlowEstimator, flow_estimator
from quantsr.teachers.base import Noisy, dtype_of
from quantsr.teachers.mgldvsr.guidance import Motion, guide, motion
from quantsr.teachers.mgldvsr.names import NamedModules
from quantsr.teachers.mgldvsr.schedule import RespacedSchedule
from quantsr.teachers.mgldvsr.structure import StructureEncoder
from quantsr.teachers.mgldvsr.unet import VideoUNet
from quantsr.teachers.mgldvsr.vae import VideoAutoencoder
from quantsr.teachers.one_step import STABLE_DIFFUSION_SCHEDULE
from quantsr.tiling import tiled

LATENT_TILE, LATENT_STRIDE = 64, 32
IMAGE_TILE, IMAGE_STRIDE = 960, 750


class MGLDVSRTeacher(NamedModules):
    """Ancestral sampling in a latent space, structured by the low-quality clip and guided by its optical flow.

    The noise is drawn from ``noise_seed``, the same for every clip (our choice): teacher and student then differ by
    quantization alone, and a clip is always restored to the same result. The released model encodes with one
    autoencoder and decodes with another whose encoder is the same; here there is one.

    Args:
        vae: arguments of :class:`VideoAutoencoder`.
        unet: arguments of :class:`VideoUNet`.
        structure: arguments of :class:`StructureEncoder`.
        frames: frames of a segment.
        steps: sampling steps.
        start: timestep of the first step, 0 to 999.
        schedule: arguments of diffusers' ``DDPMScheduler`` that define abar; Stable Diffusion's by default.
        latent_scale: s, what the encoder's latents are multiplied by.
        prompt_tokens: length of the constant prompt embedding, which is part of the weights.
        flow: optical flow estimator of the guidance, see :func:`quantsr.flow.flow_estimator`; None for no guidance.
        flow_weights: its weights, where they are not in their usual place.
        guidance: weight of the guidance, below 0 (the authors: -10).
        color_fix: correction of the output's colours against the input: ``none``, ``adain`` or ``wavelet``.
        scale: upscaling factor.
        noise_seed: of the sampling noise.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``; the schedule stays in float32.

    Raises:
        ValueError: steps that the schedule does not have, or an unknown colour correction.
        UserError: another dtype.
    """

    kind = "mgldvsr"

    def __init__(
        self,
        vae: dict[str, Any],
        unet: dict[str, Any],
        structure: dict[str, Any],
        frames: int = 5,
        steps: int = 50,
        start: int = 999,
        schedule: dict[str, Any] | None = None,
        latent_scale: float = 0.18215,
        prompt_tokens: int = 77,
        flow: str | None = "raft_large",
        flow_weights: str | None = None,
        guidance: float = -10.0,
        color_fix: str = "adain",
        scale: int = 4,
        noise_seed: int = 0,
        dtype: str = "float32",
    ):
        super().__init__()
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be one of {COLOR_FIXES}, not {color_fix!r}")
        schedule = dict(schedule or STABLE_DIFFUSION_SCHEDULE)
        self.config = {
            "vae": dict(vae),
            "unet": dict(unet),
            "structure": dict(structure),
            "frames": frames,
            "steps": steps,
            "start": start,
            "schedule": schedule,
            "latent_scale": latent_scale,
            "prompt_tokens": prompt_tokens,
            "flow": flow,
            "flow_weights": flow_weights,
            "guidance": guidance,
            "color_fix": color_fix,
            "scale": scale,
            "noise_seed": noise_seed,
            "dtype": dtype,
        }
        self.frames, self.steps, self.scale, self.color_fix = frames, steps, scale, color_fix
        self.latent_scale, self.noise_seed = latent_scale, noise_seed
        self.flow, self.flow_weights, self.guidance = flow, flow_weights, guidance
        self._estimator: FlowEstimator | None = None
        self.vae = VideoAutoencoder(**vae, frames=frames).to(dtype_of(dtype))
        self.unet = VideoUNet(**unet, frames=frames).to(dtype_of(dtype))
        self.structure = StructureEncoder(**structure).to(dtype_of(dtype))
        self.schedule = RespacedSchedule(steps, start, schedule)
        prompt = torch.randn(1, prompt_tokens, unet["prompt_channels"])
        self.register_buffer("prompt_embedding", prompt.to(dtype_of(dtype)))

    # Images and latents.

    @property
    def size_multiple(self) -> int:
        """Frames are padded to a multiple of this: the autoencoder's factor times the UNet's own downsampling.

        At full size that is 64, for frames of any size. The authors pad to 32, and enlarge frames whose latents would
        be smaller than a tile.
        """
        return self.vae.factor * 2 ** (len(self.config["unet"]["channel_multipliers"]) - 1)

    def upscale(self, lq: Tensor) -> Tensor:
        """Bicubic upscaling, ``(b, t, 3, h, w)`` to ``(b, t, 3, scale*h, scale*w)``, in [0, 1]."""
        return bicubic(lq, self.scale)

    def _padded(self, clip: Tensor) -> Tensor:
        """All frames of clips, ``(b*t, 3, h, w)``, sides reflected up to ``size_multiple``, in [-1, 1]."""
        height, width = clip.shape[-2:]
        pad = (-width % self.size_multiple, -height % self.size_multiple)
        frames = clip.flatten(0, 1)
        if any(pad):
            mode = "reflect" if pad[0] < width and pad[1] < height else "replicate"
            frames = F.pad(frames, (0, pad[0], 0, pad[1]), mode=mode)
        return frames * 2 - 1

    def embed(self, clip: Tensor) -> Tensor:
        """A clip in [0, 1] to its latents: padded, posterior mean (our choice: no sampling), scaled."""
        return self._encoded(clip)[0]

    def _encoded(self, clip: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Latents of a clip, and the features that the decoder fuses."""
        moments, features = self.vae.encode(self._padded(clip).to(self.dtype))
        latent = moments.chunk(2, dim=1)[0].unflatten(0, clip.shape[:2]).to(clip.dtype)
        return latent * self.latent_scale, features

    def encode(self, lq: Tensor) -> Tensor:
        return self.embed(self.upscale(lq))

    def decode(self, latent: Tensor, lq: Tensor) -> Tensor:
        upscaled = self.upscale(lq)
        return self._decode(latent, self._encoded(upscaled)[1], upscaled)

    def _decode(self, latent: Tensor, features: Sequence[Tensor], upscaled: Tensor) -> Tensor:
        """Frames of the size of ``upscaled``, whose features in the encoder are given."""
        x = (latent.flatten(0, 1) / self.latent_scale).to(self.dtype)
        frames = self.vae.decode(x, features).to(latent.dtype)
        height, width = upscaled.shape[-2:]
        return (frames / 2 + 0.5)[..., :height, :width].unflatten(0, latent.shape[:2])

    def render(self, latent: Tensor, lq: Tensor) -> Tensor:
        return self._correct(self.decode(latent, lq), self.upscale(lq))

    def _correct(self, clip: Tensor, upscaled: Tensor) -> Tensor:
        """Colours of every frame by those of the input."""
        frames = fix_color(clip.flatten(0, 1), upscaled.flatten(0, 1), self.color_fix)
        return frames.unflatten(0, clip.shape[:2])

    def features(self, image: Tensor) -> list[Tensor]:
        return self.vae.encoder.features(self._padded(image).to(self.dtype))

    # Denoising.

    def denoise(self, latent: Tensor, noisy: Noisy | None = None) -> Tensor:
        """Epsilon; latents larger than 64 in tiles with Gaussian weights."""
        noisy = self.start(latent) if noisy is None else noisy
        b, t = latent.shape[:2]
        timesteps = repeat(self.schedule.timesteps[noisy.step], "b -> (b t)", t=t)
        prompt = repeat(self.prompt_embedding, "1 n d -> (b t) n d", b=b, t=t)

        def predict(x: Tensor, z: Tensor) -> Tensor:
            structure = self.structure(z.to(self.dtype), timesteps)
            return self.unet(x.to(self.dtype), timesteps, structure, prompt).to(x.dtype)

        frames = [noisy.latent.flatten(0, 1), latent.flatten(0, 1)]
        return tiled(predict, frames, LATENT_TILE, LATENT_STRIDE, "gaussian").unflatten(0, (b, t))

    def clean(self, latent: Tensor, epsilon: Tensor, noisy: Noisy | None = None) -> Tensor:
        noisy = self.start(latent) if noisy is None else noisy
        signal, noise = (_per_clip(c[noisy.step]) for c in (self.schedule.signal, self.schedule.noise))
        return (noisy.latent - noise * epsilon) / signal

    # Sampling.

    def start(self, latent: Tensor) -> Noisy:
        """The low-quality latent under the noise of the first step."""
        step = torch.zeros(len(latent), dtype=torch.long, device=latent.device)
        return Noisy(self.schedule.signal[0] * latent + self.schedule.noise[0] * self._noise(latent, 0), step)

    def _noise(self, latent: Tensor, number: int) -> Tensor:
        """The noise of a step, ``(1, t, c, h, w)``: the same for all clips."""
        generator = torch.Generator().manual_seed(self.noise_seed + number)
        return torch.randn(1, *latent.shape[1:], generator=generator).to(latent)

    def _motion(self, upscaled: Tensor, latent: Tensor) -> Motion | None:
        if self.flow is None or not self.guidance or latent.shape[1] < 2:
            return None
        if self._estimator is None:
            self._estimator = flow_estimator(self.flow, self.flow_weights)
        padded = rearrange(self._padded(upscaled) / 2 + 0.5, "(b t) c h w -> b t c h w", t=latent.shape[1])
        return motion(padded, tuple(latent.shape[-2:]), self._estimator)

    def _follow(self, noisy: Noisy, clean: Tensor, moving: Motion | None) -> Noisy:
        """The next point of the sampling, from the clean latent that the denoiser sees."""
        number = int(noisy.step[0])
        schedule, last = self.schedule, number == self.steps - 1
        x = schedule.from_clean[number] * clean + schedule.from_noisy[number] * noisy.latent
        if not last:
            x = x + (schedule.log_variance[number] / 2).exp() * self._noise(x, number + 1)
        if moving is not None:
            x = guide(x, moving, self.guidance, schedule.log_variance[number])
        return Noisy(x, noisy.step + 1)

    def _walk(self, upscaled: Tensor, latent: Tensor) -> Iterator[tuple[Noisy, Tensor, Noisy]]:
        """Sampling from a low-quality latent: (noisy latent, epsilon, the next noisy latent) of every step."""
        moving = self._motion(upscaled, latent)
        noisy = self.start(latent)
        for _ in range(self.steps):
            epsilon = self.denoise(latent, noisy)
            following = self._follow(noisy, self.clean(latent, epsilon, noisy), moving)
            yield noisy, epsilon, following
            noisy = following

    @torch.no_grad()
    def _sample(self, upscaled: Tensor, latent: Tensor) -> Tensor:
        """z_H of upscaled clips and their latents."""
        *_, (_, _, last) = self._walk(upscaled, latent)
        return last.latent

    @torch.no_grad()
    def noisy(self, lq: Tensor, step: int) -> Noisy:
        upscaled = self.upscale(lq)
        latent = self.embed(upscaled)
        if step == 0:
            return self.start(latent)
        return next(following for *_, following in self._walk(upscaled, latent) if int(following.step[0]) == step)

    @torch.no_grad()
    def trajectory(self, lq: Tensor) -> Iterator[dict[str, Tensor]]:
        upscaled = self.upscale(lq)
        latent = self.embed(upscaled)
        for noisy, epsilon, _ in self._walk(upscaled, latent):
            yield {"latent": latent, "noisy": noisy.latent, "step": noisy.step, "epsilon": epsilon}

    def clean_latent(self, lq: Tensor) -> Tensor:
        upscaled = self.upscale(lq)
        return self._sample(upscaled, self.embed(upscaled))

    def restore(self, lq: Tensor) -> Tensor:
        """The output for ``lq``, not clamped; frames larger than 960 pixels in tiles. Sampling takes no gradient.

        The flow is estimated tile by tile and the colours are those of whole frames (our choice; the authors take the
        flow of whole frames and correct the colours of tiles).
        """
        upscaled = self.upscale(lq)

        def restore_tile(tile: Tensor) -> Tensor:
            latent, features = self._encoded(tile)
            return self._decode(self._sample(tile, latent), features, tile)

        return self._correct(tiled(restore_tile, [upscaled], IMAGE_TILE, IMAGE_STRIDE, "uniform"), upscaled)


def _per_clip(values: Tensor) -> Tensor:
    """``(b,)`` to broadcast over latents ``(b, t, c, h, w)``."""
    return rearrange(values, "b -> b 1 1 1 1")
