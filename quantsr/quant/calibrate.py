"""Running observers: layers note what passes through them and take the notes in, batch by batch. No input is stored."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantsr.quant.attention import PairScale, QuantizedAttention
from quantsr.quant.layer import Mode, QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.transforms import Smoothing

Quantized = QuantizedLayer | QuantizedAttention


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, Quantized]]:
    """(name, module) of every quantized layer and attention product in ``model``."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Quantized))


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Set what the quantized layers of ``model`` do in a forward pass."""
    for _, module in quantized_modules(model):
        module.mode = mode


@contextmanager
def mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """The quantized layers of ``model`` in another mode for a while; each returns to its own afterwards."""
    before = [(module, module.mode) for _, module in quantized_modules(model)]
    set_mode(model, mode)
    try:
        yield
    finally:
        for module, previous in before:
            module.mode = previous


def settle(model: nn.Module, join: Callable[[Tensor], Tensor] = lambda t: t) -> None:
    """Take what was noted about one batch into ranges and scales.

    Args:
        model: holds the observers.
        join: element-wise maximum over all devices of one flat tensor (an all-reduce); the identity on a single device.
    """
    observers = (m for m in model.modules() if isinstance(m, Quantizer | Smoothing | PairScale))
    notes = [(observer, observer.pending) for observer in observers if observer.pending is not None]
    if not notes:
        return
    joined = join(torch.cat([pending.flatten() for _, pending in notes]))
    pieces = joined.split([pending.numel() for _, pending in notes])
    for (observer, pending), piece in zip(notes, pieces, strict=True):
        observer.absorb(piece.view_as(pending))


def uncalibrated(modules: Iterable[tuple[str, Quantized]]) -> list[str]:
    """Names of the modules that have not seen any data."""
    return [name for name, module in modules if not module.calibrated]
