"""What quantization costs at each timestep, and which timestep to choose (TRQ of QArtSR, arXiv 2503.05584).

An error d of epsilon is an error noise_t / signal_t * d of the high-quality latent z_H, with signal_t = sqrt(abar_t)
and noise_t = sqrt(1 - abar_t): the smaller t, the less of the quantization error reaches the image. But as t falls, the
same z_H needs a larger epsilon,

    eps_t = (z_L - signal_t z_H) / noise_t

without bound at t -> 0, which would always win by the error alone. Epsilon is noise of unit variance by definition:
timesteps that need a larger one are left out (our choice; the paper gives no rule).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quantsr.errors import UserError


class Point(NamedTuple):
    """The curve at one timestep; all errors are root mean squares over latents.

    Attributes:
        timestep: t.
        hq_latent_rmse: error of z_H, student against teacher, both at t and from the same z_L.
        epsilon_rmse: the same of epsilon.
        needed_epsilon_rms: size of the epsilon that t needs to give the teacher's own z_H.
        factor: noise_t / signal_t, from an error of epsilon to one of z_H.
    """

    timestep: int
    hq_latent_rmse: float
    epsilon_rmse: float
    needed_epsilon_rms: float
    factor: float


class TimestepCurve(nn.Module):
    """Errors at the candidate timesteps, averaged over calibration batches.

    Args:
        timesteps: the candidates, in rising order.
        abars: abar_t of every timestep of the schedule.

    Raises:
        UserError: fewer than two candidates, one that the schedule does not have, or not in rising order.
    """

    sums: Tensor
    batches: Tensor

    def __init__(self, timesteps: Sequence[int], abars: Sequence[float]):
        super().__init__()
        self.timesteps, self.abars = list(timesteps), list(abars)
        last = len(abars) - 1
        known = all(isinstance(t, int) and 0 <= t <= last for t in self.timesteps)
        if not known or len(self.timesteps) < 2 or self.timesteps != sorted(set(self.timesteps)):
            raise UserError(
                f"method.timesteps takes two or more whole numbers from 0 to {last} in rising order, "
                f"not {self.timesteps}"
            )
        # Mean squares as in `Point`, summed over batches; in checkpoints, since the choice follows from them.
        self.register_buffer("sums", torch.zeros(len(self.timesteps), 3))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def add(self, mean_squares: Tensor) -> None:
        """Take in one batch: (candidates, 3) mean squares of this device's share of it."""
        if dist.is_available() and dist.is_initialized():
            # At every batch and not at the end: a checkpoint holds the buffers of one device.
            dist.all_reduce(mean_squares)
            mean_squares = mean_squares / dist.get_world_size()
        self.sums += mean_squares
        self.batches += 1

    def factor(self, timestep: int) -> float:
        """noise_t / signal_t."""
        return ((1 - self.abars[timestep]) / self.abars[timestep]) ** 0.5

    def points(self) -> list[Point]:
        """The curve so far, one point a candidate."""
        rms = (self.sums.double() / self.batches).sqrt().tolist()
        return [Point(t, *values, self.factor(t)) for t, values in zip(self.timesteps, rms, strict=True)]

    def best(self, limit: float) -> tuple[int, str]:
        """The timestep with the lowest error of z_H among those whose needed epsilon is small enough, and why it is.

        Args:
            limit: largest root mean square of the needed epsilon. If no candidate keeps to it, the one that comes
                closest is taken.
        """
        points = self.points()
        able = [point for point in points if point.needed_epsilon_rms <= limit]
        if not able:
            least = min(points, key=lambda point: point.needed_epsilon_rms)
            size = f"{least.needed_epsilon_rms:.3g}"
            return least.timestep, f"every candidate needs an epsilon of RMS > {limit:g}, this one the smallest, {size}"
        best = min(able, key=lambda point: point.hq_latent_rmse)
        number = f"the {len(able)} of {len(points)} candidates that need an epsilon of RMS <= {limit:g}"
        return best.timestep, f"the lowest HQ-latent error, {best.hq_latent_rmse:.3g}, of {number}"
