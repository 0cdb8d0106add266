"""Which samples each training step sees, independent of the number of devices and of interruptions."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from quantsr.errors import UserError


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Refuse a batch that cannot be divided among the devices.

    Raises:
        UserError: if it cannot.
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(
            f"A batch size of {batch_size} cannot be divided among {world_size} devices: "
            f"choose a multiple of {world_size}."
        )


class StepBatchSampler:
    """Batches of sample numbers, one per training step, for `DataLoader(batch_sampler=...)`.

    The samples come in an endless sequence of permutations; entry i of permutation e is the number e * size +
    permutation[i], so that a data set can tell the visits of one sample apart. Step k takes the entries from
    k * batch_size on. Since that is computed from k alone, any number of devices and a run resumed at any
    step see the same global batches.

    Args:
        size: number of samples in the data set.
        batch_size: samples per step over all devices together.
        steps: steps of the whole run.
        seed: of the permutations.
        start_step: the first step to give batches for.
        rank: number of this device.
        world_size: number of devices.
        first_batches: (steps, samples a step) of the beginning of the run, where that is not `batch_size`.

    Raises:
        UserError: if the batch cannot be divided among the devices.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        first_batches: Sequence[tuple[int, int]] = (),
    ):
        check_batch_size(batch_size, world_size)
        if size < 1:
            raise ValueError("cannot sample from an empty data set")
        self.size, self.batch_size, self.steps, self.seed = size, batch_size, steps, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size
        self.first_batches = tuple(first_batches)

    def __len__(self) -> int:
        """Steps of the whole run: Lightning's progress of a resumed run counts from its beginning."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            yield self.global_batch(step)[self.rank :: self.world_size]

    def global_batch(self, step: int) -> list[int]:
        """The sample numbers of one step over all devices."""
        taken = 0
        for steps, size in self.first_batches:
            if step < steps:
                break
            taken, step = taken + steps * size, step - steps
        else:
            size = self.batch_size
        first = taken + step * size
        return [self._number(position) for position in range(first, first + size)]

    def _number(self, position: int) -> int:
        epoch, i = divmod(position, self.size)
        return epoch * self.size + int(_permutation(self.size, self.seed, epoch)[i])


# More than one: a batch may lie across the border of a permutation and the next.
@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)
