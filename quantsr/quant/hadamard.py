"""Orthogonal matrices that spread outliers over channels: Hadamard where the size allows, else random orthogonal.

A Hadamard matrix of order n = m * 2^k is the Kronecker product of a small one of order m and k factors
[[1, 1], [1, -1]]; the small ones here are Paley's (m = 12, 20, 60), which covers the widths of Stable Diffusion
(320 = 20 * 16, 640, 1280, 960 = 60 * 16).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from quantsr.quant.precision import without_autocast

PALEY_ORDERS = (60, 20, 12)
LARGEST_DENSE = 64
"""Up to this size one dense product is faster than the two of its factors (measured on a CPU)."""


@lru_cache
@torch.inference_mode(False)  # Whoever asks first, training must be able to use what is kept.
def paley(order: int) -> Tensor:
    """Hadamard matrix ``(order, order)`` of +-1, for a prime q = order - 1 = 3 mod 4 (Paley's first construction)."""
    q = order - 1
    residues = {i * i % q for i in range(1, q)}
    character = torch.tensor([0] + [1 if i in residues else -1 for i in range(1, q)], dtype=torch.float32)
    index = (torch.arange(q)[:, None] - torch.arange(q)[None, :]) % q
    skew = torch.zeros(order, order)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[index]
    return skew + torch.eye(order)


def factor(size: int) -> int | None:
    """The order m of the small matrix for ``size`` = m * 2^k: 1, 12, 20 or 60; None if there is none."""
    for order in (*PALEY_ORDERS, 1):
        if size % order == 0 and (size // order) & (size // order - 1) == 0:
            return order
    return None


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def kronecker_factors(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices A ``(a, a)`` and B ``(b, b)`` with H = A kron B and a b = ``size``; a = 1 for small sizes.

    Two dense factors of about the same size need a + b multiplications for a value. That is more than the additions of
    butterflies, but two passes over memory instead of log2(size), and matrix products are what libraries are good at.

    Raises:
        ValueError: no such matrix for this size.
    """
    order = factor(size)
    if order is None:
        raise ValueError(f"no Hadamard matrix of order {size} here: it needs {PALEY_ORDERS} or 1 times a power of two")
    a = torch.ones(1, 1) if order == 1 else paley(order)
    b = torch.ones(1, 1)
    butterfly = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(a) * len(b) < size:
        a, b = (torch.kron(a, butterfly), b) if len(a) < len(b) else (a, torch.kron(b, butterfly))
    if size <= LARGEST_DENSE:
        a, b = torch.ones(1, 1), torch.kron(a, b)
    a, b = ((m / math.sqrt(len(m))).to(device, dtype) for m in (a, b))
    return a, b


def hadamard_transform(x: Tensor, axis: int = -1, transpose: bool = False) -> Tensor:
    """``x @ H`` along an axis, for the normalized Hadamard matrix H of its size, in O(n sqrt(n)).

    Args:
        x: of size n = m * 2^k along ``axis``, m one of 1, 12, 20, 60.
        axis: which one.
        transpose: take H^T, the inverse, instead.

    Raises:
        ValueError: no such matrix for n.
    """
    axis %= x.ndim
    a, b = kronecker_factors(x.shape[axis], x.dtype, x.device)
    if transpose:
        a, b = a.T, b.T
    with without_autocast(x):
        y = multiply(x.unflatten(axis, (len(a), len(b))), b, axis + 1)
        return multiply(y, a, axis).view(x.shape) if len(a) > 1 else y.reshape(x.shape)


def multiply(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """``x @ matrix`` along an axis (not negative), without moving it: the layout in memory stays. Contiguous."""
    before, size, after = x.shape[:axis].numel(), x.shape[axis], x.shape[axis + 1 :].numel()
    if after == 1:
        return (x.reshape(before, size) @ matrix).view(x.shape)
    return torch.bmm(matrix.T.expand(before, -1, -1), x.reshape(before, size, after)).view(x.shape)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrix ``(size, size)``, uniformly distributed (QR of a Gaussian one, R's diagonal made positive)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()
