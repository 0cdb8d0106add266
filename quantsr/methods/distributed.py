"""Stages on several devices."""

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor


class StagedDDP(DDPStrategy):
    """Processes of DDP around a staged module, without its wrapper.

    DDP's wrapper counts on parameters that all take part and keep their shapes. Stages train a few at a time, some
    train nothing and one gives parameters other shapes, so that gradients are averaged by :func:`average_gradients`
    instead. All processes build the same model from the same seed.
    """

    def configure_ddp(self) -> None:
        pass


def several_devices() -> bool:
    """Whether the run has other processes."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this is the first device of the run."""
    return not several_devices() or dist.get_rank() == 0


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every device the mean of all devices' gradients."""
    if not several_devices():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for handle in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        handle.wait()
    for gradient in gradients:
        gradient.div_(dist.get_world_size())


def gathered(value: Any) -> list[Any]:
    """``value`` of every device of the run."""
    if not several_devices():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
