"""Precision of what decides about codes: that of the tensors themselves."""

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
