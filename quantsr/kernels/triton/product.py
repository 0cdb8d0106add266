"""The product of codes as an implicit matrix product: rows are output positions, channels come last.

A segment is what is summed in int32 before scales are applied: a part of the channels over all taps of the kernel, or,
where every token has its own scale, over one tap. Tensor cores multiply int8 by int8; packed weights are unpacked in
registers, as the two halves of a tile.
"""

import triton
import triton.language as tl


def configurations(interpreted: bool) -> list[triton.Config]:
    """Tile sizes to choose from, for GPUs like the H100; the interpreter chooses nothing.

    Triton times them for every size. Compiled for the H100, they keep both accumulators in registers, but for some
    100 bytes a thread that the largest spills outside of its loop over channels.
    """
    shapes = [(64, 64, 4, 4), (128, 64, 8, 4), (64, 128, 8, 4), (128, 128, 8, 3), (128, 128, 8, 4), (128, 256, 8, 3)]
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in ([(32, 32, 4, 1)] if interpreted else shapes)
    ]


@triton.autotune(configurations(triton.knobs.runtime.interpret), key=["m_count", "n_count", "k", "TAPS", "PACKED"])
@triton.jit
def product_kernel(
    x, x_sums, x_scale, x_zero, w, w_sums, w_scale, w_zero, starts, sizes, bias, hidden, up, y,
    m_count, n_count, k, height, width, out_height, out_width, rank,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PARTS: tl.constexpr, PACKED: tl.constexpr, BY_TOKEN: tl.constexpr, POINTWISE: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_R: tl.constexpr, SUMS_ONLY: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program computes ``BLOCK_M`` output positions of ``BLOCK_N`` output channels.

    x  (images * height * width, k) int8     x_sums, x_scale, x_zero  see :class:`QuantizedInput`
    w  (n, TAPS, k) int8, or (n, TAPS, k / 2) packed     w_sums, w_scale, w_zero  see :class:`QuantizedWeight`
    y  (m, n): of any float type, or with SUMS_ONLY the int32 sums of products of codes over all parts
    hidden (m, rank), up (n, rank)   with BLOCK_R > 0
    """
    columns = tl.cdiv(n_count, BLOCK_N)
    m = (tl.program_id(0) // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_inside, n_inside = m < m_count, n < n_count
    row, column = (m // out_width) % out_height, m % out_width
    image = m // (out_width * out_height)
    weight_row = n.to(tl.int64) * TAPS
    if SUMS_ONLY:
        raw = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    SEGMENT: tl.constexpr = 1 if BY_TOKEN else TAPS
    for p in range(PARTS):
        # In tiles, not in channels: the compiler sees that a part begins at a multiple, and loads 16 bytes at a time.
        start = tl.load(starts + p) * BLOCK_K
        steps = tl.load(starts + p + 1) - tl.load(starts + p)
        size = tl.load(sizes + p)
        sw = tl.load(w_scale + n * PARTS + p, n_inside, 0.0)
        zw = tl.load(w_zero + n * PARTS + p, n_inside, 0.0)
        for first in range(0, TAPS, SEGMENT):
            acc = tl.full((BLOCK_M, BLOCK_N), 0, tl.int32)
            # Taps and channels in one loop, which the compiler pipelines as a whole.
            for i in range(SEGMENT * steps):
                tap = first + i // steps
                c = start + (i % steps) * BLOCK_K
                at, seen = _position(
                    m, image, row, column, m_inside, tap, height, width, KERNEL_W,
                    STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, POINTWISE,
                )  # fmt: skip
                acc = _multiply(acc, x + at * k + c, w, (weight_row + tap) * k + c, seen, n_inside, PACKED, BLOCK_K)
            if SUMS_ONLY:
                raw += acc
            # What the zero points take off: of inputs that are there, not of padding.
            counted = tl.full((BLOCK_M,), 0, tl.int32)
            far = tl.full((BLOCK_M,), 0.0, tl.float32)
            s = tl.full((BLOCK_M,), 1.0, tl.float32)
            z = tl.full((BLOCK_M,), 0.0, tl.float32)
            if not BY_TOKEN:
                s = s * tl.load(x_scale + p)
                z = z + tl.load(x_zero + p)
            for tap in range(first, first + SEGMENT):
                at, seen = _position(
                    m, image, row, column, m_inside, tap, height, width, KERNEL_W,
                    STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, POINTWISE,
                )  # fmt: skip
                if BY_TOKEN:
                    s = tl.load(x_scale + at * PARTS + p, seen, 0.0)
                    z = tl.load(x_zero + at * PARTS + p, seen, 0.0)
                nearest = tl.minimum(tl.maximum(z, -128.0), 127.0)
                far = z - nearest
                near = nearest.to(tl.int32) * seen.to(tl.int32)
                acc -= near[:, None] * tl.load(w_sums + (weight_row + tap) * PARTS + p, n_inside, 0)[None, :]
                counted += tl.load(x_sums + at * PARTS + p, seen, 0) - near * size
            inner = acc.to(tl.float32) - counted.to(tl.float32)[:, None] * zw[None, :]
            if tl.max(tl.abs(far), axis=0) != 0.0:  # Hardly ever: only of ranges that do not hold 0.
                for tap in range(first, first + SEGMENT):
                    at, seen = _position(
                        m, image, row, column, m_inside, tap, height, width, KERNEL_W,
                        STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W, POINTWISE,
                    )  # fmt: skip
                    ws = tl.load(w_sums + (weight_row + tap) * PARTS + p, n_inside, 0).to(tl.float32) - zw * size
                    inner -= tl.where(seen, far, 0.0)[:, None] * ws[None, :]
            total += inner * s[:, None] * sw[None, :]
    where = y + m.to(tl.int64)[:, None] * n_count + n[None, :]
    mask = m_inside[:, None] & n_inside[None, :]
    if SUMS_ONLY:
        tl.store(where, raw, mask)
    else:
        if BIAS:
            total += tl.load(bias + n, n_inside, 0.0).to(tl.float32)[None, :]
        if BLOCK_R > 0:
            r = tl.arange(0, BLOCK_R)
            left = tl.load(
                hidden + m.to(tl.int64)[:, None] * rank + r[None, :], m_inside[:, None] & (r < rank)[None, :], 0.0
            )
            right = tl.load(up + n[None, :] * rank + r[:, None], n_inside[None, :] & (r < rank)[:, None], 0.0)
            total += tl.dot(left, right, input_precision="ieee", out_dtype=tl.float32)
        tl.store(where, total.to(y.dtype.element_ty), mask)


@triton.jit
def _position(
    m, image, row, column, m_inside, tap, height, width, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, POINTWISE: tl.constexpr,
):  # fmt: skip
    """The input position that outputs see through a tap, and whether it is none of padding."""
    if POINTWISE:
        return m.to(tl.int64), m_inside
    i = row * STRIDE_H - PAD_H + (tap // KERNEL_W) * DILATION_H
    j = column * STRIDE_W - PAD_W + (tap % KERNEL_W) * DILATION_W
    seen = m_inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return (image.to(tl.int64) * height + i) * width + j, seen


@triton.jit
def _multiply(acc, x, w, at, x_mask, w_mask, PACKED: tl.constexpr, BLOCK_K: tl.constexpr):
    """``acc`` plus the product of one tile of codes; ``at`` are the weights' elements, two of which a byte may hold."""
    if PACKED:
        # Byte i of a tile holds channels i and i + BLOCK_K / 2, see quantsr.kernels.operands.pack.
        HALF: tl.constexpr = BLOCK_K // 2
        c = tl.arange(0, HALF)
        low = tl.load(x[:, None] + c[None, :], x_mask[:, None], 0)
        high = tl.load(x[:, None] + (HALF + c)[None, :], x_mask[:, None], 0)
        pair = tl.load(w + (at // 2)[None, :] + c[:, None], w_mask[None, :], 0)
        acc = tl.dot(low, ((pair << 4).to(tl.int8) >> 4).to(tl.int8), acc=acc, out_dtype=tl.int32)
        return tl.dot(high, (pair >> 4).to(tl.int8), acc=acc, out_dtype=tl.int32)
    c = tl.arange(0, BLOCK_K)
    codes = tl.load(x[:, None] + c[None, :], x_mask[:, None], 0)
    weights = tl.load(w + at[None, :] + c[:, None], w_mask[None, :], 0)
    return tl.dot(codes, weights, acc=acc, out_dtype=tl.int32)
