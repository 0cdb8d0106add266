"""What every teacher offers: a frozen super-resolution model in three parts."""

from abc import ABC, abstractmethod
from copy import deepcopy

from torch import Tensor, nn


class Teacher(nn.Module, ABC):
    """A full-precision diffusion super-resolution model: ``encode`` -> ``denoise`` -> ``decode``.

    Images are RGB float in [0, 1], ``(b, 3, h, w)``; latents are ``(b, c, h', w')`` in the denoiser's scale.

    Attributes:
        scale: how many times larger the output is than the input.
    """

    scale: int

    @abstractmethod
    def encode(self, lq: Tensor) -> Tensor:
        """Low-quality image to the latent that the denoiser starts from, z_L."""

    @abstractmethod
    def denoise(self, latent: Tensor) -> Tensor:
        """The denoiser's output (epsilon) for ``latent``, of the same shape."""

    @abstractmethod
    def clean(self, latent: Tensor, epsilon: Tensor) -> Tensor:
        """The high-quality latent z_H that follows from z_L and epsilon."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """High-quality latent z_H to an image; not clamped, so that losses keep their gradient."""

    @abstractmethod
    def render(self, latent: Tensor, lq: Tensor) -> Tensor:
        """High-quality latent to the output for ``lq``: ``decode``, cut to size, colours corrected; not clamped."""

    def clean_latent(self, lq: Tensor) -> Tensor:
        """z_H for ``lq``."""
        latent = self.encode(lq)
        return self.clean(latent, self.denoise(latent))

    def restore(self, lq: Tensor) -> Tensor:
        """The output for ``lq``, not clamped: what losses compare."""
        return self.render(self.clean_latent(lq), lq)

    def forward(self, lq: Tensor) -> Tensor:
        """Super-resolve ``lq``: ``(b, 3, h, w)`` to ``(b, 3, scale*h, scale*w)``, clamped to [0, 1]."""
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

        Together they hold every linear layer and convolution of the model.
        """

    def freeze(self) -> "Teacher":
        """Evaluation mode, no gradients. Returns self."""
        return self.requires_grad_(False).eval()

    def twin(self) -> "Teacher":
        """A copy of the module tree whose parameters and buffers ARE this model's: the start of a student.

        Layers of the copy can be swapped without touching the original, and a full-size model is in memory once.
        """
        shared = {id(t): t for t in [*self.parameters(), *self.buffers()]}
        return deepcopy(self, shared)
