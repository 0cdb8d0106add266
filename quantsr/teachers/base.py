"""What every teacher offers: a frozen super-resolution model in three parts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from quantsr.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the networks of a teacher can store their weights and compute in."""


def dtype_of(name: str) -> torch.dtype:
    """The data type of a name.

    Raises:
        UserError: another name.
    """
    if name not in DTYPES:
        raise UserError(f"teacher.dtype takes one of {list(DTYPES)}, not {name!r}")
    return DTYPES[name]


class Noisy(NamedTuple):
    """Where a teacher of several steps is on its way from noise to the clean latent.

    Attributes:
        latent: the noisy latent, of the shape of the low-quality one.
        step: number of the sampling step, ``(b,)`` int64, 0 for the first.
    """

    latent: Tensor
    step: Tensor


class Teacher(nn.Module, ABC):
    """A full-precision diffusion super-resolution model: ``encode`` -> ``denoise`` -> ``decode``.

    Images are RGB float in [0, 1], ``(b, 3, h, w)``, clips ``(b, t, 3, h, w)`` with t = ``frames``; latents are
    ``(b, c, h', w')`` or ``(b, t, c, h', w')`` in the denoiser's scale.

    Networks compute in the data type of their weights, :attr:`dtype`; images and latents have the caller's.

    A teacher of one step denoises the low-quality latent itself; ``noisy`` is then None everywhere. A teacher of
    several steps walks from noise to the clean latent and looks at the low-quality latent on the way.

    Attributes:
        scale: how many times larger the output is than the input.
        frames: frames of one input: 1 for image teachers.
        steps: denoising steps of one output.
        kind: of the model, as its file names it.
        config: everything to build the model from, as its file keeps it.
    """

    kind: str
    scale: int
    frames: int = 1
    steps: int = 1
    config: dict[str, Any]
    prompt_embedding: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights."""
        return self.prompt_embedding.dtype

    @abstractmethod
    def encode(self, lq: Tensor) -> Tensor:
        """Low-quality image to the latent that the denoiser starts from, z_L."""

    def noisy(self, lq: Tensor, step: int) -> Noisy | None:
        """What the denoiser finds at a step of this model's own sampling for ``lq``; None for one-step teachers."""
        return None

    @abstractmethod
    def denoise(self, latent: Tensor, noisy: Noisy | None = None) -> Tensor:
        """The denoiser's output (epsilon) for the low-quality latent, of the same shape; without ``noisy`` at the
        first step."""

    @abstractmethod
    def clean(self, latent: Tensor, epsilon: Tensor, noisy: Noisy | None = None) -> Tensor:
        """The high-quality latent z_H that epsilon stands for."""

    @abstractmethod
    def decode(self, latent: Tensor, lq: Tensor) -> Tensor:
        """High-quality latent z_H to the decoder's own output for ``lq``; not clamped: losses keep their gradient."""

    @abstractmethod
    def render(self, latent: Tensor, lq: Tensor) -> Tensor:
        """High-quality latent to the output for ``lq``: ``decode``, cut to size, colours corrected; not clamped."""

    @abstractmethod
    def features(self, image: Tensor) -> list[Tensor]:
        """Features of an image or clip in [0, 1] in the encoder, every resolution: ``(n, c, h, w)``, n all frames."""

    def clean_latent(self, lq: Tensor) -> Tensor:
        """z_H for ``lq``, by all steps."""
        latent = self.encode(lq)
        return self.clean(latent, self.denoise(latent))

    def predict(self, lq: Tensor, noisy: Noisy | None = None) -> Tensor:
        """The output for ``lq`` as one denoising step sees it, not clamped: what losses compare."""
        latent = self.encode(lq)
        return self.render(self.clean(latent, self.denoise(latent, noisy), noisy), lq)

    def restore(self, lq: Tensor) -> Tensor:
        """The output for ``lq``, by all steps, not clamped."""
        return self.render(self.clean_latent(lq), lq)

    @torch.no_grad()
    def trajectory(self, lq: Tensor) -> Iterator[dict[str, Tensor]]:
        """What the denoiser sees and answers at every step of the sampling for ``lq``: calibration pairs.

        Yields:
            ``latent`` and ``epsilon``, and the fields of :class:`Noisy` (``noisy``, ``step``) where there are any.
        """
        latent = self.encode(lq)
        yield {"latent": latent, "epsilon": self.denoise(latent)}

    def forward(self, lq: Tensor) -> Tensor:
        """Super-resolve ``lq``: ``(b, 3, h, w)`` to ``(b, 3, scale*h, scale*w)``, clamped to [0, 1]; clips alike."""
        return self.restore(lq).clamp(0, 1)

    @abstractmethod
    def parts(self) -> dict[str, list[str]]:
        """The parts ``encoder``, ``denoiser``, ``decoder``, each as the module-name prefixes that it owns."""

    @abstractmethod
    def sensitive(self) -> dict[str, list[str]]:
        """Layers that the papers keep at 8 bits whatever the rest gets, by part."""

    @abstractmethod
    def blocks(self) -> dict[str, list[str]]:
        """Blocks (convolutions, residual, attention, sampling, time embedding) by part, each in execution order.

        Together they hold every linear layer and convolution of the parts.
        """

    def concatenations(self) -> dict[str, int]:
        """Layers whose input is two tensors, one after the other along the channels, and how many the first has.

        In a UNet's way up, the hidden state and the skip connection: the shortcut takes them as they are, the first
        convolution after normalization.
        """
        return {}

    @property
    @abstractmethod
    def entrance(self) -> str:
        """Name of the denoiser's first convolution."""

    @property
    @abstractmethod
    def exit(self) -> str:
        """Name of the denoiser's last convolution."""

    def kept(self) -> list[str]:
        """Modules that belong to no part and are never quantized."""
        return []

    def freeze(self) -> Self:
        """Evaluation mode, no gradients. Returns self."""
        return self.requires_grad_(False).eval()

    def twin(self) -> Self:
        """A copy of the module tree whose parameters and buffers ARE this model's: the start of a student.

        Layers of the copy can be swapped without touching the original, and a full-size model is in memory once.
        """
        shared = {id(t): t for t in [*self.parameters(), *self.buffers()]}
        return deepcopy(self, shared)
