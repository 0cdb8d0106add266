"""The integer products in plain PyTorch, on any device: what the kernels are compared with.

Torch has no integer matrix product for every device, so integers are multiplied as floats where that is exact: float32
holds every whole number up to 2^24, so that sums of products are taken in pieces that cannot grow beyond it, whatever
the order of summation, and the pieces are added in int32. Rounding of factors to TF32 or bfloat16, which torch may be
set to, changes nothing in whole numbers this small.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.kernels.operands import (
    LARGEST_PRODUCT,
    LARGEST_SCORE,
    Branch,
    Probabilities,
    QuantizedInput,
    QuantizedWeight,
    align,
    part_sums,
    starts,
)
from quantsr.kernels.window import Window

EXACT = 2**24
"""Whole numbers up to this one are float32 values."""
PIECE = 2**21
"""Probabilities held at a time."""


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    padding: tuple[int, ...] = (),
    sums: bool = True,
) -> QuantizedInput:
    """The codes of an activation.

    Args:
        x: ``(..., c)``.
        scale, zero: float32, ``(p,)`` or ``(..., p)``; see :class:`QuantizedInput`.
        bits: 2 to 8.
        sizes: channels of each part.
        padding: of the window that will see them, along every spatial axis of ``x``.
        sums: whether sums of codes are wanted.
    """
    half, around = 2 ** (bits - 1), _around(padding)
    inside = F.pad(torch.ones_like(x[..., :1], dtype=torch.bool), around)
    x = F.pad(x.float(), around)
    if scale.ndim > 1:
        scale, zero = F.pad(scale, around, value=1.0), F.pad(zero, around)
    pieces = []
    for number, piece in enumerate(x.split(list(sizes), -1)):
        s, z = scale[..., number : number + 1], zero[..., number : number + 1]
        # As the simulation does: codes are clamped as counted from the zero point, where that is far away too.
        lowest, highest = -half - z, half - 1 - z
        codes = torch.minimum(torch.maximum((piece / s).round(), lowest), highest)
        codes = codes.add_(z).clamp_(-half, half - 1)
        pieces.append(torch.where(inside, codes, z.clamp(-128, 127)).to(torch.int8))
    codes = align(torch.cat(pieces, -1), sizes)
    return QuantizedInput(codes, part_sums(codes, sizes) if sums else None, scale, zero, padding)


def quantize_tokens(
    x: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    symmetric: bool,
    ratio: float = 1.0,
    smallest: float = 1e-8,
    padding: tuple[int, ...] = (),
    sums: bool = True,
) -> QuantizedInput:
    """Codes by the extremes of every token.

    Args:
        x: ``(..., c)``.
        bits: 2 to 8.
        sizes: channels of each part.
        symmetric: a zero of 0 and the scale of the larger bound.
        ratio: share of the extremes that are the bounds; what lies beyond is clipped.
        smallest: what a scale does not fall below.
        padding, sums: see :func:`quantize`; padding's tokens have a scale of 1.
    """
    pieces = x.float().split(list(sizes), -1)
    lower, upper = (torch.cat([f(piece, -1, keepdim=True) for piece in pieces], -1) for f in (torch.amin, torch.amax))
    lower, upper = ratio * lower, ratio * upper
    if symmetric:
        scale = (torch.maximum(lower.abs(), upper.abs()) / (2 ** (bits - 1) - 1)).clamp(min=smallest)
        return quantize(x, scale, torch.zeros_like(scale), bits, sizes, padding, sums)
    scale = ((upper - lower) / (2**bits - 1)).clamp(min=smallest)
    return quantize(x, scale, (-lower / scale).round() - 2 ** (bits - 1), bits, sizes, padding, sums)


def _around(padding: tuple[int, ...]) -> list[int]:
    """Padding of spatial axes, before channels, as :func:`torch.nn.functional.pad` takes it."""
    return [0, 0, *(pad for axis in reversed(padding) for pad in (axis, axis))]


def integer_product(a: Tensor, b: Tensor, largest: int) -> Tensor:
    """Exact ``a @ b`` in int32.

    Args:
        a: ``(..., k)`` whole numbers of any type.
        b: ``(k, n)`` of any type, or ``(..., k, n)``.
        largest: what the magnitude of a product of two elements does not exceed.
    """
    piece = max(1, EXACT // largest)
    total = torch.zeros(*a.shape[:-1], b.shape[-1], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for start in range(0, b.shape[-2], piece):
            part = slice(start, start + piece)
            total += (a[..., part].float() @ b[..., part, :].float()).to(torch.int32)
    return total


def accumulate(x: QuantizedInput, weight: QuantizedWeight, window: Window) -> Tensor:
    """Sums of products of codes alone, over all parts and taps, padding's among them.

    Returns:
        ``(..., n)`` int32 for the output's positions.
    """
    codes = weight.unpacked
    views = window.valid.views(x.codes)
    return torch.stack([integer_product(view, codes[:, t].T, 2**14) for t, view in enumerate(views)]).sum(
        0, dtype=torch.int32
    )


def product(
    x: QuantizedInput,
    weight: QuantizedWeight,
    window: Window,
    bias: Tensor | None = None,
    branch: Branch | None = None,
    dtype: torch.dtype = torch.float32,
    channels_first: bool = False,
) -> Tensor:
    """The product of the values, plus bias and branch.

        y[m, n] = sum over parts p of  s_x s_w[n] sum over taps, channels of (q_x - z_x) (q_w[n] - z_w[n])

    The inner sum is taken of whole numbers; everything after it in float32.

    Args:
        x, weight, window: the factors; padding is of values 0.
        bias: ``(n,)``.
        branch: added in float32.
        dtype: of the result.
        channels_first: whether the memory of a convolution's result is that of ``(b, n, *output)``.

    Returns:
        ``(..., n)`` for the output's positions: ``(tokens, n)`` or ``(b, *output, n)``.
    """
    codes, bounds, window = weight.unpacked, starts(weight.sizes), window.valid
    total = torch.zeros((), device=codes.device)
    for p, (start, size) in enumerate(zip(bounds, weight.sizes, strict=False)):
        part = slice(start, start + size)
        scale, zero = x.scale[..., p : p + 1], x.zero[..., p : p + 1]
        near = zero.clamp(-128, 127)  # A zero that is a code is taken off in whole numbers,
        far = zero - near  # and what lies beyond in float.
        views = window.views(x.codes[..., part].to(torch.int16) - near.to(torch.int16))
        if x.by_token:
            found = _by_token(views, window.views(scale), window.views(far), codes[..., part], weight, p)
        else:
            found = _by_tensor(views, window.views(_inside(x)), far, codes[..., part], weight, p) * scale
        total = total + found * weight.scale[:, p]
    if bias is not None:
        total = total + bias.float()
    if branch is not None:
        with torch.autocast(total.device.type, enabled=False):
            total = total + (branch.hidden.float() @ branch.up.float().T).view(total.shape)
    total = total.to(dtype)
    return total.movedim(-1, 1).contiguous().movedim(1, -1) if channels_first else total


def _inside(x: QuantizedInput) -> Tensor:
    """``(1, *spatial, 1)``: 1 where there is an input and 0 where there is padding."""
    spatial = x.codes.shape[1:-1]
    padding = x.padding or (0,) * len(spatial)
    sizes = (n - 2 * pad for n, pad in zip(spatial, padding, strict=True))
    return F.pad(torch.ones(1, *sizes, 1, device=x.codes.device), _around(padding))


def _by_tensor(
    views: Iterator[Tensor], inside: Iterator[Tensor], far: Tensor, codes: Tensor, weight: QuantizedWeight, p: int
) -> Tensor:
    """The inner sum for one part whose scale is that of the whole tensor.

    Args:
        views: of centered codes, for every tap.
        inside: 1 where outputs see an input and 0 where they see padding, of which nothing is to be taken off.
        far: what is left of the zero, ``(1,)``.
        codes: of the weight's part.
        weight, p: the weight and the number of the part.
    """
    products = torch.zeros((), dtype=torch.int32, device=codes.device)
    sums = products
    for tap, view in enumerate(views):
        products = products + integer_product(view, codes[:, tap].T, LARGEST_PRODUCT)
        sums = sums + view.sum(-1, keepdim=True, dtype=torch.int32)
    found = products.float()
    if weight.zero is not None:
        found = found - sums.float() * weight.zero[:, p]
    if far.any():
        for tap, view in enumerate(inside):
            found -= far * view * _centered_sums(weight, p, tap)
    return found


def _by_token(
    views: Iterator[Tensor], scales: Iterator[Tensor], far: Iterator[Tensor],
    codes: Tensor, weight: QuantizedWeight, p: int,
) -> Tensor:  # fmt: skip
    """The same, scaled, where every token has its own scale: each tap is a sum of its own."""
    found = torch.zeros((), device=codes.device)
    for tap, (view, scale, beyond) in enumerate(zip(views, scales, far, strict=True)):
        inner = integer_product(view, codes[:, tap].T, LARGEST_PRODUCT).float()
        if weight.zero is not None:
            inner -= view.sum(-1, keepdim=True, dtype=torch.int32).float() * weight.zero[:, p]
        inner -= beyond * _centered_sums(weight, p, tap)
        found = found + inner * scale
    return found


def _centered_sums(weight: QuantizedWeight, p: int, tap: int) -> Tensor:
    """``(n,)``: sums of q_w - z_w over the channels of a part."""
    sums = weight.sums[:, tap, p]
    return sums if weight.zero is None else sums - weight.zero[:, p] * weight.sizes[p]


def attention(
    q: QuantizedInput,
    k: QuantizedInput,
    v: QuantizedInput,
    probabilities: Probabilities,
    channels: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """softmax(q k^T / sqrt(c)) v, both products of codes.

        p[i, j] = softmax over j of  s_q s_k / sqrt(c) sum over c (q[i] - z_q) (k[j] - z_k)      in float32
        y[i] = s_p s_v sum over j (code of p[i, j] d[j] - z_p) (v[j] - z_v)                      d the scales of keys

    Args:
        q: ``(b, heads, n, k)`` codes with sums, one scale, and a zero that is a code.
        k: ``(b, heads, m, k)`` of the same kind.
        v: of the same kind, of every channel those of all keys: ``(b, heads, c, m)`` with m aligned as channels are.
        probabilities: their number format; its zero may be any.
        channels: c, of a head.
        dtype: of the result.

    Returns:
        ``(b, heads, n, c)``.
    """
    lengths = (channels, channels, k.codes.shape[-2])
    left, right, value = (
        t.codes[..., :length].to(torch.int16) - t.zero.to(torch.int16)
        for t, length in zip((q, k, v), lengths, strict=True)
    )
    factor, half = q.scale * k.scale * channels**-0.5, 2 ** (probabilities.bits - 1)
    near = probabilities.zero.clamp(-128, 127)
    beyond = (probabilities.zero - near) * value.sum(-1, dtype=torch.int32).float()[..., None, :]
    pieces = []
    for part in left.split(max(1, PIECE // (k.codes.shape[0] * k.codes.shape[1] * k.codes.shape[2])), -2):
        p = (integer_product(part, right.mT, LARGEST_SCORE).float() * factor).softmax(-1)
        if probabilities.key_scale is not None:
            p = p * probabilities.key_scale
        lowest, highest = -half - probabilities.zero, half - 1 - probabilities.zero
        codes = torch.minimum(torch.maximum((p / probabilities.scale).round(), lowest), highest)
        codes = codes.add_(probabilities.zero).clamp_(-half, half - 1)
        total = integer_product(codes - near, value.mT, LARGEST_SCORE).float() - beyond
        pieces.append((total * (probabilities.scale * v.scale)).to(dtype))
    return torch.cat(pieces, -2)
