"""Respaced ancestral sampling (DDPM, arXiv 2006.11239): a few of a diffusion's 1000 timesteps, as coefficients.

The respaced chain is a diffusion of its own whose abar are those of the timesteps that remain (improved DDPM,
arXiv 2102.09672, section 4).
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn


class RespacedSchedule(nn.Module):
    """Coefficients of ``steps`` sampling steps, from the noisiest to the cleanest; index them by step.

    Attributes:
        timesteps: t of each step, ``(steps,)`` int64, evenly spaced from ``start`` to 0.
        signal, noise: sqrt(abar_t) and sqrt(1 - abar_t).
        from_clean, from_noisy: the mean of the next latent is from_clean * x_0 + from_noisy * x_t (DDPM, eq. 7).
        log_variance: of the next latent around it; of the last step, which adds no noise, log(1e-20), as released.

    Args:
        steps: number of sampling steps.
        start: timestep of the first.
        schedule: arguments of diffusers' ``DDPMScheduler`` that define abar.

    Raises:
        ValueError: less than one step, more than timesteps, or a start that the schedule does not have.
    """

    SMALLEST_VARIANCE = 1e-20

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    from_clean: Tensor
    from_noisy: Tensor
    log_variance: Tensor

    def __init__(self, steps: int, start: int, schedule: dict[str, Any]):
        super().__init__()
        with torch.device("cpu"):  # Values are needed, also where weights are not.
            timesteps, coefficients = self._values(steps, start, schedule)
        # What follows from the constructor's arguments is in no state dict.
        self.register_buffer("timesteps", timesteps, persistent=False)
        for name, values in coefficients.items():
            self.register_buffer(name, values.float(), persistent=False)

    @classmethod
    def _values(cls, steps: int, start: int, schedule: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Timesteps, and coefficients by name in float64."""
        abars = DDPMScheduler(**schedule).alphas_cumprod.double()
        if not 0 <= start < len(abars):
            raise ValueError(f"the first timestep must be from 0 to {len(abars) - 1}, not {start}")
        if not 1 <= steps <= start + 1:
            raise ValueError(f"from timestep {start} on there are 1 to {start + 1} steps, not {steps}")
        timesteps = torch.linspace(start, 0, steps, dtype=torch.float64).round().long()
        abar = abars[timesteps]
        following = torch.cat([abar[1:], torch.ones(1, dtype=abar.dtype)])  # After the last step there is no noise.
        alpha = abar / following
        variance = (1 - alpha) * (1 - following) / (1 - abar)
        coefficients = {
            "signal": abar.sqrt(),
            "noise": (1 - abar).sqrt(),
            "from_clean": following.sqrt() * (1 - alpha) / (1 - abar),
            "from_noisy": alpha.sqrt() * (1 - following) / (1 - abar),
            "log_variance": variance.clamp(min=cls.SMALLEST_VARIANCE).log(),
        }
        return timesteps, coefficients
