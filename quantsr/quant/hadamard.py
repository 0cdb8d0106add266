"""Orthogonal matrices that spread outliers over channels: Hadamard where the size allows, else random orthogonal.

A Hadamard matrix of order n = m * 2^k is the Kronecker product of a small one of order m and k factors
[[1, 1], [1, -1]]; the small ones here are Paley's (m = 12, 20, 60), which covers the widths of Stable Diffusion
(320 = 20 * 16, 640, 1280, 960 = 60 * 16).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

PALEY_ORDERS = (60, 20, 12)


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


def hadamard_transform(x: Tensor) -> Tensor:
    """``x @ H`` along the last axis for the normalized Hadamard matrix H of its size, in O(n log n).

    Args:
        x: ``(..., n)`` with n = m * 2^k, m one of 1, 12, 20, 60.

    Raises:
        ValueError: no such matrix for n.
    """
    size = x.shape[-1]
    order = factor(size)
    if order is None:
        raise ValueError(f"no Hadamard matrix of order {size} here: it needs {PALEY_ORDERS} or 1 times a power of two")
    shape = x.shape
    y = x.reshape(-1, order, size // order)
    half = 1
    while half < size // order:  # Butterflies over the power of two.
        y = y.reshape(-1, order, size // order // (2 * half), 2, half)
        a, b = y.unbind(-2)
        y = torch.stack([a + b, a - b], -2).reshape(-1, order, size // order)
        half *= 2
    if order > 1:
        y = torch.einsum("b i n, i j -> b j n", y, paley(order).to(y))
    return y.reshape(shape) / math.sqrt(size)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Orthogonal matrix ``(size, size)``, uniformly distributed (QR of a Gaussian one, R's diagonal made positive)."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()
