"""Running observers: layers note what passes through them and take the notes in, batch by batch. No input is stored."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.layer import Mode, QuantizedLayer
from quantsr.quant.observer import Observer

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

    Raises:
        UserError: something infinite or undefined was seen; ranges and scales are then as they were.
    """
    found = ((name, m) for name, m in model.named_modules() if isinstance(m, Observer))
    notes = [(name, observer, observer.pending) for name, observer in found if observer.pending is not None]
    if not notes:
        return
    joined = join(torch.cat([pending.flatten() for *_, pending in notes]))
    pieces = joined.split([pending.numel() for *_, pending in notes])
    if not joined.isfinite().all():
        name = next(name for (name, *_), piece in zip(notes, pieces, strict=True) if not piece.isfinite().all())
        raise UserError(f"{name} met infinite or undefined values: look at the data, or set trainer.precision=32-true")
    for (_, observer, pending), piece in zip(notes, pieces, strict=True):
        observer.pending = None
        observer.absorb(piece.view_as(pending))


def uncalibrated(modules: Iterable[tuple[str, Quantized]]) -> list[str]:
    """Names of the modules that have not seen any data."""
    return [name for name, module in modules if not module.calibrated]
