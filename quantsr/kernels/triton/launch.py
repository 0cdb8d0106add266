"""Calls of the Triton kernels, with the signatures of :mod:`quantsr.kernels.reference`."""

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from quantsr.kernels.operands import ALIGN, Branch, QuantizedInput, QuantizedWeight, starts
from quantsr.kernels.triton.product import product_kernel
from quantsr.kernels.triton.quantize import quantize_kernel
from quantsr.kernels.window import Window

TILE = 2048
"""Values that a program quantizes at a time."""
WIDEST = 1024
"""Channels of them, where those lie side by side: few tokens make enough programs to fill a GPU."""


@lru_cache(maxsize=256)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First channels of the parts, their first tiles of ``ALIGN`` (and the end), sizes; int32 on the device, kept."""
    firsts, tiles = [sum(sizes[:number]) for number in range(len(sizes))], [at // ALIGN for at in starts(sizes)]
    with torch.inference_mode(False):
        first, start, size = (
            torch.tensor(values, dtype=torch.int32, device=device) for values in (firsts, tiles, sizes)
        )
    return first, start, size


def quantize(x: Tensor, scale: Tensor, zero: Tensor, bits: int, sizes: tuple[int, ...]) -> QuantizedInput:
    """See :func:`quantsr.kernels.reference.quantize`."""
    by_token = scale.ndim > 1
    scale, zero = scale.float().contiguous(), zero.float().contiguous()
    codes, sums = _launch(x, scale, zero, bits, sizes, BY_TOKEN=by_token, DYNAMIC=False, SYMMETRIC=False)
    return QuantizedInput(codes, sums, scale, zero)


def quantize_tokens(
    x: Tensor, bits: int, sizes: tuple[int, ...], symmetric: bool, ratio: float = 1.0, smallest: float = 1e-8
) -> QuantizedInput:
    """See :func:`quantsr.kernels.reference.quantize_tokens`; extremes and codes in one kernel."""
    scale, zero = (x.new_empty(*x.shape[:-1], len(sizes), dtype=torch.float32) for _ in range(2))
    levels = float(2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
    options: dict[str, Any] = {"BY_TOKEN": True, "DYNAMIC": True, "SYMMETRIC": symmetric}
    codes, sums = _launch(x, scale, zero, bits, sizes, ratio, levels, smallest, **options)
    return QuantizedInput(codes, sums, scale, zero)


def _launch(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    ratio: float = 1.0,
    levels: float = 1.0,
    smallest: float = 1.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    # Channels may come first in memory: the kernel reads by strides, and only what has no single one is copied.
    images = x.reshape(1, -1, x.shape[-1]) if x.ndim < 3 else x.flatten(1, -2)
    first, start, size = _layout(sizes, x.device)
    k, tokens, spatial = starts(sizes)[-1], images.shape[0] * images.shape[1], images.shape[1]
    codes = torch.empty(*x.shape[:-1], k, dtype=torch.int8, device=x.device)
    sums = torch.empty(*x.shape[:-1], len(sizes), dtype=torch.int32, device=x.device)
    if not tokens:
        return codes, sums
    # Where channels are far apart, tokens lie side by side.
    channels = min(WIDEST, triton.next_power_of_2(max(ALIGN, *sizes))) if images.stride(-1) == 1 else ALIGN
    rows = TILE // channels
    quantize_kernel[(triton.cdiv(tokens, rows), len(sizes))](
        images, codes, sums, scale, zero, first, start, size, tokens, spatial, k, *images.stride(),
        ratio, levels, smallest, PARTS=len(sizes), HALF=2 ** (bits - 1),
        ALIGN=ALIGN, BLOCK_M=rows, BLOCK_K=channels, **options,
        enable_fp_fusion=False,  # A fused multiplication and subtraction would round another way than torch.
    )  # fmt: skip
    return codes, sums


def accumulate(x: QuantizedInput, weight: QuantizedWeight, window: Window) -> Tensor:
    """See :func:`quantsr.kernels.reference.accumulate`."""
    return _product(x, weight, window, None, None, torch.int32)


def product(
    x: QuantizedInput,
    weight: QuantizedWeight,
    window: Window,
    bias: Tensor | None = None,
    branch: Branch | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`quantsr.kernels.reference.product`; the window must be planar."""
    return _product(x, weight, window, bias, branch, dtype)


def _product(
    x: QuantizedInput,
    weight: QuantizedWeight,
    window: Window,
    bias: Tensor | None,
    branch: Branch | None,
    dtype: torch.dtype,
) -> Tensor:
    spatial = x.codes.shape[1:-1]
    output = (*x.codes.shape[:1], *window.output(spatial)) if window.kernel else tuple(x.codes.shape[:-1])
    rows, (n, taps) = int(torch.Size(output).numel()), weight.codes.shape[:2]
    y = torch.empty(*output, n, dtype=dtype, device=x.codes.device)
    if not y.numel():
        return y
    plane, (height, width) = (Window((1, 1), (1, 1), (0, 0), (1, 1)), (1, 1))
    if not window.pointwise:
        planar = window.planar(spatial)
        if planar is None:
            raise ValueError(f"the Triton kernels compute windows over two axes, not {window}")
        plane, (height, width) = planar
    _, start, size = _layout(weight.sizes, y.device)
    rank = 0 if branch is None else branch.up.shape[1]
    hidden, up = (y, y) if branch is None else (branch.hidden.contiguous(), branch.up.contiguous())
    out_height, out_width = plane.output((height, width))

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    product_kernel[grid](
        x.codes, x.sums, x.scale, x.zero, weight.codes.view(torch.int8), weight.sums, weight.scale, weight.zero,
        start, size, y if bias is None else bias, hidden, up, y,
        rows, n, x.codes.shape[-1], height, width, out_height, out_width, rank,
        TAPS=taps, KERNEL_W=plane.kernel[1],
        STRIDE_H=plane.stride[0], STRIDE_W=plane.stride[1], PAD_H=plane.padding[0], PAD_W=plane.padding[1],
        DILATION_H=plane.dilation[0], DILATION_W=plane.dilation[1],
        PARTS=len(weight.sizes), PACKED=weight.packed, BY_TOKEN=x.by_token, POINTWISE=window.pointwise,
        BIAS=bias is not None, BLOCK_R=max(16, triton.next_power_of_2(rank)) if rank else 0,
        SUMS_ONLY=dtype == torch.int32, BLOCK_K=ALIGN,
    )  # fmt: skip
    return y
