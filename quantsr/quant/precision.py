"""Precision of what decides about codes: that of the tensors themselves."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Products inside are computed in the tensors' own precision, also where a layer is called under autocast.

    Codes then do not depend on how a layer is called. The ``meta`` device knows no autocast.

    Args:
        x: on the device of the products.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def keeping_types(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, which ``nn.Module._apply`` is given, without its changes of type: tensors move, and are never rounded."""

    def moved(tensor: Tensor) -> Tensor:
        found = fn(tensor)
        return found if found.dtype == tensor.dtype else tensor.to(found.device)

    return moved
