"""Which implementation computes: Triton where the tensors are on a CUDA GPU, plain PyTorch elsewhere."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from quantsr.kernels import reference
from quantsr.kernels.operands import (
    ALIGN,
    LONGEST_SUM,
    MOST_KEYS,
    Branch,
    Probabilities,
    QuantizedInput,
    QuantizedWeight,
    starts,
)
from quantsr.kernels.window import Window

Backend = Literal["auto", "reference", "triton"]
"""``auto`` takes Triton for tensors on a CUDA GPU where it is installed and knows the window, else the reference."""


@cache
def installed() -> bool:
    """Whether triton is there to be imported."""
    try:
        return find_spec("triton") is not None
    except ValueError:  # An entry in sys.modules without a specification.
        return False


def interpreted() -> bool:
    """Whether Triton was told to run kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def implementation(device: torch.device, backend: Backend, window: Window | None = None) -> ModuleType:
    """The module with ``quantize``, ``accumulate``, ``product`` and ``attention`` to use.

    Args:
        device: of the tensors.
        backend: what is asked for.
        window: of a product; of more than two axes, it is the reference's under ``auto``.

    Raises:
        ValueError: an unknown backend, or Triton is asked for where it cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, not {backend!r}")
    if backend == "triton":
        if not installed():
            raise ValueError("backend='triton' needs the package triton, which is not installed")
        if device.type != "cuda" and not interpreted():
            raise ValueError(f"backend='triton' needs tensors on a CUDA GPU or TRITON_INTERPRET=1, not {device}")
    elif backend == "reference" or device.type != "cuda" or not installed() or not _planar(window):
        return reference
    from quantsr.kernels.triton import launch

    return launch


def _planar(window: Window | None) -> bool:
    """Whether the Triton kernels know a window; sizes play no part in that."""
    return window is None or window.pointwise or window.planar((1,) * len(window.kernel)) is not None


def current(device: torch.device) -> AbstractContextManager:
    """Within, ``device`` is the current one: Triton launches on the current GPU, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    padding: tuple[int, ...] = (),
    sums: bool = True,
    backend: Backend = "auto",
) -> QuantizedInput:
    """The codes of an activation, see :func:`quantsr.kernels.reference.quantize`."""
    with current(x.device):
        return _for_padding(x, padding, backend).quantize(x, scale, zero, bits, sizes, padding, sums)


def quantize_tokens(
    x: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    symmetric: bool,
    ratio: float = 1.0,
    smallest: float = 1e-8,
    padding: tuple[int, ...] = (),
    sums: bool = True,
    backend: Backend = "auto",
) -> QuantizedInput:
    """Codes by the extremes of every token, see :func:`quantsr.kernels.reference.quantize_tokens`."""
    chosen = _for_padding(x, padding, backend)
    with current(x.device):
        return chosen.quantize_tokens(x, bits, sizes, symmetric, ratio, smallest, padding, sums)


def _for_padding(x: Tensor, padding: tuple[int, ...], backend: Backend) -> ModuleType:
    """The implementation for an input with that padding."""
    once = (1,) * len(padding)
    return implementation(x.device, backend, Window(once, once, padding, once))


def accumulate(x: QuantizedInput, weight: QuantizedWeight, window: Window, backend: Backend = "auto") -> Tensor:
    """Sums of products of codes, see :func:`quantsr.kernels.reference.accumulate`."""
    check(x, weight, window)
    with current(x.codes.device):
        return implementation(x.codes.device, backend, window).accumulate(x, weight, window)


def product(
    x: QuantizedInput,
    weight: QuantizedWeight,
    window: Window,
    bias: Tensor | None = None,
    branch: Branch | None = None,
    dtype: torch.dtype = torch.float32,
    channels_first: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The product of the values, see :func:`quantsr.kernels.reference.product`.

    Raises:
        ValueError: operands that do not belong together, sums that int32 may not hold, or a backend that cannot run.
    """
    check(x, weight, window)
    with current(x.codes.device):
        chosen = implementation(x.codes.device, backend, window)
        return chosen.product(x, weight, window, bias, branch, dtype, channels_first)


def attention(
    q: QuantizedInput,
    k: QuantizedInput,
    v: QuantizedInput,
    probabilities: Probabilities,
    channels: int,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of codes, see :func:`quantsr.kernels.reference.attention`.

    Raises:
        ValueError: operands that do not belong together, more keys than int32 sums, or a backend that cannot
            run.
    """
    check_attention(q, k, v, probabilities, channels)
    with current(q.codes.device):
        return implementation(q.codes.device, backend).attention(q, k, v, probabilities, channels, dtype)


def check_attention(
    q: QuantizedInput, k: QuantizedInput, v: QuantizedInput, probabilities: Probabilities, channels: int
) -> None:
    """Refuse what the kernel would read past the end of. Which zeros and scales there are is for the caller to see to.

    Raises:
        ValueError: operands that do not belong together, or more keys than int32 sums.
    """
    heads, (keys, aligned) = q.codes.shape[:-2], k.codes.shape[-2:]
    if q.codes.ndim != 4 or k.codes.shape[:-2] != heads or v.codes.shape != (*heads, channels, starts((keys,))[-1]):
        raise ValueError(
            f"queries {tuple(q.codes.shape)}, keys {tuple(k.codes.shape)} and values {tuple(v.codes.shape)} are not of "
            f"the same heads, keys and {channels} channels"
        )
    if q.codes.shape[-1] != aligned or not 0 <= aligned - channels < ALIGN or aligned % ALIGN:
        raise ValueError(f"heads of {channels} channels do not go with codes of {q.codes.shape[-1]} and {aligned}")
    if any(t.by_token or t.sums is None for t in (q, k, v)):
        raise ValueError("attention takes one scale for all queries, keys and values, and sums of them")
    if probabilities.key_scale is not None and len(probabilities.key_scale) != keys:
        raise ValueError(f"{len(probabilities.key_scale)} scales of keys do not go with {keys} keys")
    if keys > MOST_KEYS:
        raise ValueError(f"{keys} keys are summed in int32, which holds {MOST_KEYS} of them")


def check(x: QuantizedInput, weight: QuantizedWeight, window: Window) -> None:
    """Refuse what a kernel would read past the end of.

    Raises:
        ValueError: operands that do not belong together, or sums that int32 may not hold.
    """
    n, taps, stored = weight.codes.shape
    k, parts = stored * (2 if weight.packed else 1), len(weight.sizes)
    if x.codes.shape[-1] != k or k % ALIGN or taps != window.taps or x.scale.shape[-1] != parts:
        raise ValueError(
            f"an input of {x.codes.shape[-1]} aligned channels in {x.scale.shape[-1]} parts and a window of "
            f"{window.taps} taps do not go with a weight of {k} channels in {parts} parts and {taps} taps"
        )
    scales = [weight.scale, *([] if weight.zero is None else [weight.zero])]
    if weight.sums.shape != (n, taps, parts) or any(t.shape != (n, parts) for t in scales):
        raise ValueError(f"a weight of {n} outputs, {taps} taps and {parts} parts needs sums and scales of these sizes")
    if weight.zero is not None and x.sums is None:
        raise ValueError("a weight with zeros needs an input with sums")
    if window.kernel and x.codes.ndim != len(window.kernel) + 2:
        raise ValueError(f"a window over {len(window.kernel)} axes does not go with codes of {x.codes.ndim} axes")
    if window.kernel and (x.padding or (0,) * len(window.padding)) != window.padding:
        raise ValueError(f"an input padded by {x.padding} does not go with a window padded by {window.padding}")
    if taps * max(weight.sizes) > LONGEST_SUM:
        raise ValueError(f"{taps * max(weight.sizes)} products are summed in int32, which holds {LONGEST_SUM} of them")
