"""Calls of the Triton kernels, with the signatures of :mod:`quantsr.kernels.reference`."""

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from quantsr.kernels.operands import ALIGN, Branch, Probabilities, QuantizedInput, QuantizedWeight, starts
from quantsr.kernels.triton.attention import attention_kernel
from quantsr.kernels.triton.product import finish_kernel, product_kernel
from quantsr.kernels.triton.quantize import quantize_kernel
from quantsr.kernels.window import Window

TILE = 2048
"""Values that a program quantizes at a time."""
WIDEST = 4096
"""Channels of them, where a token's are needed together."""
FUSED = {"enable_fp_fusion": True}
"""Said, because Triton 3.9 warns where it is not, and 3.10 changes it; codes do not depend on it."""


@lru_cache(maxsize=256)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First channels of the parts, their first tiles of ``ALIGN`` (and the end), sizes; int32 on the device, kept."""
    firsts, tiles = [sum(sizes[:number]) for number in range(len(sizes))], [at // ALIGN for at in starts(sizes)]
    with torch.inference_mode(False):
        first, start, size = (
            torch.tensor(values, dtype=torch.int32, device=device) for values in (firsts, tiles, sizes)
        )
    return first, start, size


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    padding: tuple[int, ...] = (),
    sums: bool = True,
) -> QuantizedInput:
    """See :func:`quantsr.kernels.reference.quantize`; the padding must be planar."""
    scale, zero = scale.float().contiguous(), zero.float().contiguous()
    if by_token := scale.ndim > 1:
        around = [0, 0, *(pad for axis in reversed(padding) for pad in (axis, axis))]
        scale, zero = torch.nn.functional.pad(scale, around, value=1.0), torch.nn.functional.pad(zero, around)
    options: dict[str, Any] = {"BY_TOKEN": by_token, "DYNAMIC": False, "SYMMETRIC": False}
    return _quantized(x, scale, zero, bits, sizes, padding, sums, **options)


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
    """See :func:`quantsr.kernels.reference.quantize_tokens`; extremes and codes in one kernel."""
    shape = (*_padded(x, padding), len(sizes))
    scale, zero = (x.new_empty(shape, dtype=torch.float32) for _ in range(2))
    levels = float(2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
    options: dict[str, Any] = {"BY_TOKEN": True, "DYNAMIC": True, "SYMMETRIC": symmetric}
    return _quantized(x, scale, zero, bits, sizes, padding, sums, ratio, levels, smallest, **options)


def _padded(x: Tensor, padding: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of ``(..., c)`` with padding around the last axes of them."""
    spatial = x.shape[:-1]
    around = (0,) * (len(spatial) - len(padding)) + padding
    return tuple(n + 2 * pad for n, pad in zip(spatial, around, strict=True))


def _quantized(
    x: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    sizes: tuple[int, ...],
    padding: tuple[int, ...],
    sums: bool,
    ratio: float = 1.0,
    levels: float = 1.0,
    smallest: float = 1.0,
    **options: Any,
) -> QuantizedInput:
    shape, k = _padded(x, padding), starts(sizes)[-1]
    codes = torch.empty(*shape, k, dtype=torch.int8, device=x.device)
    counted = torch.empty(*shape, len(sizes), dtype=torch.int32, device=x.device) if sums else None
    found = QuantizedInput(codes, counted, scale, zero, padding)
    if not codes.numel():
        return found
    # As images of rows and columns; channels may come first in memory: the kernel reads by strides.
    images, (pad_h, pad_w) = _planes(x, padding)
    height, width = images.shape[1] + 2 * pad_h, images.shape[2] + 2 * pad_w
    tokens = len(images) * height * width
    first, start, size = _layout(sizes, x.device)
    # Where channels are far apart, tokens lie side by side: so many that with all channels, few programs would be busy.
    apart = images.stride(-1) != 1
    whole = options["DYNAMIC"] or (sums and not apart)
    if counted is not None and not whole:
        counted.zero_()
    channels = ALIGN if apart or not whole else min(WIDEST, triton.next_power_of_2(max(ALIGN, *sizes)))
    rows = max(1, TILE // channels)
    pieces = 1 if whole else triton.cdiv(max(sizes), channels)
    quantize_kernel[(triton.cdiv(tokens, rows), len(sizes), pieces)](
        images, codes, codes if counted is None else counted, scale, zero, first, start, size,
        tokens, k, sizes[0], height, width, pad_h, pad_w, *images.stride(),
        ratio, levels, smallest, PARTS=len(sizes), HALF=2 ** (bits - 1),
        SUMS=sums, PADDED=bool(pad_h or pad_w), FILLED=any(size % ALIGN for size in sizes), WHOLE_TOKENS=whole,
        ALIGN=ALIGN, BLOCK_M=rows, BLOCK_K=channels, **options,
        enable_fp_fusion=False,  # A fused multiplication and subtraction would round another way than torch.
    )  # fmt: skip
    return found


def _planes(x: Tensor, padding: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
    """``(b, height, width, c)`` of ``(..., c)``, and the padding of height and width."""
    if not any(padding):
        rows = x.reshape(1, 1, -1, x.shape[-1]) if x.ndim < 4 else x.flatten(2, -2)
        return rows, (0, 0)
    if len(padding) == 1:
        return x.unsqueeze(1), (0, padding[0])
    if len(padding) > 2 and any(padding[1:]):
        raise ValueError(f"the Triton kernels compute windows over two axes, not with a padding of {padding}")
    return x.flatten(2, -2) if len(padding) > 2 else x, (padding[0], padding[1])


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
    channels_first: bool = False,
) -> Tensor:
    """See :func:`quantsr.kernels.reference.product`; the window must be planar."""
    return _product(x, weight, window, bias, branch, dtype, channels_first)


class Tiling(NamedTuple):
    """How a product is cut into programs.

    Attributes:
        m, n: output positions and output channels of a program.
        k: input channels of a step.
        splits: programs that share a sum.
        stages: steps of which the operands are being read at a time.
    """

    m: int
    n: int
    k: int
    splits: int
    stages: int


LONG = 40
"""Steps of a sum that is worth sharing; a shorter one takes no longer than adding up what was shared."""
MOST_SPLITS = 6


def tiling(rows: int, outputs: int, channels: int, processors: int) -> Tiling:
    """A good cut, by what was measured on an H100: 128 positions by 64 channels, two programs on each multiprocessor.

    Where that makes too few programs, sums are shared if they are long, else programs compute 64 positions.

    Args:
        rows, outputs: of the product.
        channels: summed with one scale, over all taps.
        processors: of the GPU.
    """
    k = ALIGN if channels <= ALIGN else 2 * ALIGN
    if triton.knobs.runtime.interpret:
        return Tiling(32, 32, k, 2 if channels > ALIGN else 1, 1)
    steps, columns = triton.cdiv(channels, k), triton.cdiv(outputs, 64)
    few = triton.cdiv(rows, 128) * columns < processors
    m = 64 if rows <= 64 or (few and steps <= LONG) else 128
    splits = 2 * processors // (triton.cdiv(rows, m) * columns) if steps > LONG else 1
    return Tiling(m, 64, k, min(max(splits, 1), MOST_SPLITS), 6 if m == 64 else 4 if steps > 3 else 3)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin if device.type == "cuda" else 0


def _product(
    x: QuantizedInput,
    weight: QuantizedWeight,
    window: Window,
    bias: Tensor | None,
    branch: Branch | None,
    dtype: torch.dtype,
    channels_first: bool = False,
) -> Tensor:
    window, spatial = window.valid, x.codes.shape[1:-1]
    around: tuple[int, ...]
    output = (*x.codes.shape[:1], *window.output(spatial)) if window.kernel else tuple(x.codes.shape[:-1])
    rows, (n, taps) = int(torch.Size(output).numel()), weight.codes.shape[:2]
    shape = (output[0], n, *output[1:]) if channels_first else (*output, n)
    y = torch.empty(shape, dtype=dtype, device=x.codes.device)
    found = y.movedim(1, -1) if channels_first else y
    if not y.numel():
        return found
    if window.pointwise:
        plane, (height, width), around = Window((1, 1), (1, 1), (0, 0), (1, 1)), (1, rows), (0, 0)
    else:
        planar = window.planar(spatial)
        if planar is None:
            raise ValueError(f"the Triton kernels compute windows over two axes, not {window}")
        plane, (height, width) = planar
        around = (0, *x.padding) if len(x.padding) == 1 else x.padding[:2] or (0, 0)
    _, start, size = _layout(weight.sizes, y.device)
    rank = 0 if branch is None else branch.up.shape[1]
    hidden, up = (y, y) if branch is None else (branch.hidden.contiguous(), branch.up.contiguous())
    out_height, out_width = plane.output((height, width))
    longest = max(weight.sizes) * (1 if x.by_token else taps)
    tile = tiling(rows, n, longest, _processors(y.device))
    shares = y
    if tile.splits > 1:
        shares = torch.empty(
            tile.splits, rows, n, dtype=dtype if dtype == torch.int32 else torch.float32, device=y.device
        )
    positions = rows // output[0] if channels_first else 1
    # In pieces of 16, or factors in float32, which no tensor core multiplies exactly, do not fit the registers.
    piece = 16 if hidden.dtype == torch.float32 else max(16, triton.next_power_of_2(rank))
    ends = {"BIAS": bias is not None, "CHANNELS_FIRST": channels_first, "BLOCK_R": piece if rank else 0}
    product_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(n, tile.n), tile.splits)](
        x.codes, y if x.sums is None else x.sums, x.scale, x.zero,
        weight.codes.view(torch.int8), weight.sums, weight.scale, y if weight.zero is None else weight.zero,
        start, size, y if bias is None else bias, hidden, up, shares,
        rows, n, x.codes.shape[-1], weight.sizes[0], height, width, out_height, out_width, rank,
        positions, TAPS=taps, KERNEL_W=plane.kernel[1], STRIDE_H=plane.stride[0], STRIDE_W=plane.stride[1],
        PAD_H=around[0], PAD_W=around[1], DILATION_H=plane.dilation[0], DILATION_W=plane.dilation[1],
        PARTS=len(weight.sizes), PACKED=weight.packed, BY_TOKEN=x.by_token, WEIGHT_ZERO=weight.zero is not None,
        POINTWISE=window.pointwise, SUMS_ONLY=dtype == torch.int32, SHARED=tile.splits > 1,
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, num_warps=4, num_stages=tile.stages, **ends, **FUSED,
    )  # fmt: skip
    if tile.splits > 1:
        block = 32 if triton.knobs.runtime.interpret else 16
        finish_kernel[(triton.cdiv(rows, block) * triton.cdiv(n, 64),)](
            shares, y if bias is None else bias, hidden, up, y, rows, n, rank, tile.splits,
            positions, BLOCK_M=block, BLOCK_N=64, **ends, **FUSED,
        )  # fmt: skip
    return found


def attention(
    q: QuantizedInput,
    k: QuantizedInput,
    v: QuantizedInput,
    probabilities: Probabilities,
    channels: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`quantsr.kernels.reference.attention`; the result's memory is that of ``(b, n, heads, c)``."""
    (b, heads, queries, aligned), keys = q.codes.shape, k.codes.shape[2]
    y = torch.empty(b, queries, heads, channels, dtype=dtype, device=q.codes.device)
    if y.numel():
        key_scale, block = probabilities.key_scale, attention_block(aligned, _shared_memory(y.device))
        attention_kernel[(b * heads * triton.cdiv(queries, block.queries),)](
            q.codes, q.sums, q.scale, q.zero, k.codes, k.sums, k.scale, k.zero,
            v.codes, v.sums, v.scale, v.zero,
            probabilities.scale, probabilities.zero, y if key_scale is None else key_scale, y,
            heads, queries, keys, v.codes.shape[-1], channels, channels**0.5,
            HALF=2 ** (probabilities.bits - 1), KEY_SCALE=key_scale is not None, K=aligned,
            BLOCK_C=triton.next_power_of_2(aligned), BLOCK_Q=block.queries, BLOCK_K=block.keys,
            num_warps=8, num_stages=block.stages, **FUSED,
        )  # fmt: skip
    return y.transpose(1, 2)


class AttentionBlock(NamedTuple):
    """How attention is cut: queries of a program, keys of a step, and steps of which operands are read at a time."""

    queries: int
    keys: int
    stages: int


def attention_block(channels: int, shared: int) -> AttentionBlock:
    """What fits the registers and the shared memory of a GPU; not timed.

    Args:
        channels: aligned, of a head.
        shared: bytes of shared memory that a program may have: 99 KiB on GPUs of consumers, 163 on an A100.
    """
    if triton.knobs.runtime.interpret:
        return AttentionBlock(32, 32, 1)
    if channels == ALIGN:
        return AttentionBlock(128, 128, 3)
    wide = channels > 4 * ALIGN and shared < 128 * 1024
    return AttentionBlock(64, 32 if wide else 64, 3 if channels == 2 * ALIGN else 2)
