"""The product of codes as an implicit matrix product: weights times positions, both with channels last in memory.

A segment is what is summed in int32 before scales are applied: a part of the channels over all taps of the kernel, or,
where every token has its own scale, over one tap. Tensor cores multiply int8 by int8. Weights are the left factor,
which Hopper's tensor cores also take from registers: where they are packed, they are unpacked on the way. Where outputs
alone would not fill a GPU, programs share the sums (``SHARED``), and :func:`finish_kernel` adds up what they found.
"""

import triton
import triton.language as tl

from quantsr.kernels.operands import ALIGN as _ALIGN

ALIGN = tl.constexpr(_ALIGN)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit(do_not_specialize=["m_count", "size", "height", "width", "out_height", "out_width", "rank"])
def product_kernel(
    x, x_sums, x_scale, x_zero, w, w_sums, w_scale, w_zero, starts, sizes, bias, hidden, up, y,
    m_count, n_count, k, size, height, width, out_height, out_width, rank, positions,
    TAPS: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    PARTS: tl.constexpr, PACKED: tl.constexpr, BY_TOKEN: tl.constexpr, WEIGHT_ZERO: tl.constexpr,
    POINTWISE: tl.constexpr, BIAS: tl.constexpr, BLOCK_R: tl.constexpr, SUMS_ONLY: tl.constexpr, SHARED: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes ``BLOCK_M`` output positions of ``BLOCK_N`` output channels, or a share of their sums.

    x  (images * height * width, k) int8, with padding     x_sums, x_scale, x_zero  see :class:`QuantizedInput`
    w  (n, TAPS, k) int8, or (n, TAPS, k / 2) packed       w_sums, w_scale, w_zero  see :class:`QuantizedWeight`
    y  (m, n): of any float type, or with SUMS_ONLY the int32 sums of products of codes over all parts;
       with SHARED (shares, m, n) float32 or int32, without bias and branch;
       else with CHANNELS_FIRST (m / positions, n, positions)
    hidden (m, rank), up (n, rank)   with BLOCK_R > 0
    starts (PARTS + 1), in tiles of ``ALIGN``, sizes (PARTS)   with PARTS > 1; else size
    """
    columns = tl.cdiv(n_count, BLOCK_N)
    tile, share, shares = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    m = (tile // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Beyond the last position or channel the last one is computed again, which needs no masks, and not stored.
    seen, row_of_w = tl.minimum(m, m_count - 1), tl.minimum(n, n_count - 1)
    if POINTWISE:
        top, left, position = seen * 0, seen, seen.to(tl.int64)
    else:
        top, left = (seen // out_width) % out_height * STRIDE_H, seen % out_width * STRIDE_W
        position = (seen // (out_width * out_height)).to(tl.int64) * (height * width) + top * width + left
    UNITS: tl.constexpr = BLOCK_K // ALIGN
    w_rows = w + row_of_w.to(tl.int64) * (TAPS * (k // 2 if PACKED else k))
    x_rows = x + position * k
    constant = tl.full((BLOCK_N,), 0.0, tl.float32)
    if BIAS and not SHARED:
        constant += tl.load(bias + row_of_w).to(tl.float32)
    raw = tl.full((BLOCK_N, BLOCK_M), 0, tl.int32)
    total = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
    SEGMENT: tl.constexpr = 1 if BY_TOKEN else TAPS
    for p in range(PARTS):
        if PARTS > 1:
            # In tiles, not in channels: the compiler sees that a part begins at a multiple, and loads 16 bytes a time.
            start, end = tl.load(starts + p) * ALIGN, tl.load(starts + p + 1) * ALIGN
            size = tl.load(sizes + p)
            units = (end - start) // ALIGN
        else:
            start = 0
            units = k // ALIGN
        scale = tl.load(w_scale + row_of_w * PARTS + p)
        if WEIGHT_ZERO:
            zero = tl.load(w_zero + row_of_w * PARTS + p)
        for first in range(0, TAPS, SEGMENT):
            w_sum = tl.full((BLOCK_N,), 0, tl.int32)
            for other in tl.static_range(SEGMENT):
                w_sum += tl.load(w_sums + (row_of_w * TAPS + first + other) * PARTS + p)

            if not BY_TOKEN:
                s, z = tl.load(x_scale + p), tl.load(x_zero + p)
            acc = tl.full((BLOCK_N, BLOCK_M), 0, tl.int32)
            unit, last = SEGMENT * units * share // shares, SEGMENT * units * (share + 1) // shares
            tap, chunk = first + unit // units, unit % units
            row, column = tap // KERNEL_W, tap % KERNEL_W
            # Taps and channels in one loop, which the compiler pipelines as a whole. What the next step reads is found
            # before this one's reads: else the compiler would not read ahead.
            for step in range(0, last - unit, UNITS):
                at, w_at = _offsets(row, column, chunk, start, k, width, KERNEL_W, DILATION_H, DILATION_W)
                chunk, column, row = _advanced(chunk, column, row, units, KERNEL_W)
                if UNITS == 2:
                    at_2, w_at_2 = _offsets(row, column, chunk, start, k, width, KERNEL_W, DILATION_H, DILATION_W)
                    chunk, column, row = _advanced(chunk, column, row, units, KERNEL_W)
                else:
                    at_2, w_at_2 = at, w_at
                c, seen_c = _channels(at, at_2, last - unit - step, 1, BLOCK_K)
                x_tile = tl.load(x_rows[None, :] + c[:, None], seen_c[:, None], 0)
                c, seen_c = _channels(w_at, w_at_2, last - unit - step, 2 if PACKED else 1, BLOCK_K)
                stored = tl.load(w_rows[:, None] + c[None, :], seen_c[None, :], 0)
                acc = tl.dot(_unpacked(stored) if PACKED else stored, x_tile, acc=acc, out_dtype=tl.int32)
            if PACKED:
                acc = acc >> 4
            if SUMS_ONLY:
                raw += acc

            if BY_TOKEN:
                at = _beside(position, first, width, KERNEL_W, DILATION_H, DILATION_W)
                s, z = tl.load(x_scale + at * PARTS + p)[None, :], tl.load(x_zero + at * PARTS + p)[None, :]
            nearest = tl.minimum(tl.maximum(z, -128.0), 127.0)
            far, near = z - nearest, nearest.to(tl.int32)
            beyond = tl.abs(far)
            if BY_TOKEN:
                beyond = tl.max(tl.max(beyond, axis=1), axis=0)
            # What zeros take off is taken off once, by the first of the programs that share the sums.
            if share == 0:
                acc -= w_sum[:, None] * near
            inner = acc.to(tl.float32)
            if WEIGHT_ZERO:  # noqa: SIM102 (the compiler has to know this condition alone)
                if share == 0:
                    counted = tl.full((1, BLOCK_M), 0, tl.int32)
                    for other in tl.static_range(SEGMENT):
                        at = _beside(position, first + other, width, KERNEL_W, DILATION_H, DILATION_W)
                        counted += tl.load(x_sums + at * PARTS + p)[None, :] - near * size
                    inner -= zero[:, None] * counted.to(tl.float32)
            if (share == 0) & (beyond != 0.0):  # Hardly ever: only of ranges that do not hold 0.
                for tap in range(first, first + SEGMENT):
                    i, j = top + tap // KERNEL_W * DILATION_H, left + tap % KERNEL_W * DILATION_W
                    inside = (i >= PAD_H) & (i < height - PAD_H) & (j >= PAD_W) & (j < width - PAD_W)
                    ws = tl.load(w_sums + (row_of_w * TAPS + tap) * PARTS + p).to(tl.float32)
                    if WEIGHT_ZERO:
                        ws -= zero * size
                    inner -= ws[:, None] * tl.where(inside[None, :], far, 0.0)
            total += inner * s * scale[:, None]
    if CHANNELS_FIRST and not SHARED:
        where, mask = _channels_first(m, n, m_count, n_count, positions)
    else:
        mask = (n < n_count)[:, None] & (m < m_count)[None, :]
        where = (share * m_count + m.to(tl.int64))[None, :] * n_count + n[:, None]
    if SUMS_ONLY:
        tl.store(y + where, raw, mask)
    else:
        if not SHARED:
            total = _finished(total, constant, hidden, up, m, n, m_count, n_count, rank, BLOCK_R)
        tl.store(y + where, total.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["m_count", "rank", "count"])
def finish_kernel(
    shares, bias, hidden, up, y, m_count, n_count, rank, count, positions,
    BIAS: tl.constexpr, BLOCK_R: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program adds up ``count`` shares ``(count, m, n)`` of some outputs, always in the same order."""
    columns = tl.cdiv(n_count, BLOCK_N)
    m = (tl.program_id(0) // columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(0) % columns) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (n < n_count)[:, None] & (m < m_count)[None, :]
    where = m.to(tl.int64)[None, :] * n_count + n[:, None]
    constant = tl.full((BLOCK_N,), 0.0, tl.float32)
    if BIAS:
        constant += tl.load(bias + n, n < n_count, 0.0).to(tl.float32)
    total = tl.load(shares + where, mask, 0)
    for share in range(1, count):
        there = (share * m_count + m.to(tl.int64))[None, :] * n_count + n[:, None]
        total += tl.load(shares + there, mask, 0)
    if y.dtype.element_ty != tl.int32:
        total = _finished(total, constant, hidden, up, m, n, m_count, n_count, rank, BLOCK_R)
    if CHANNELS_FIRST:
        where, mask = _channels_first(m, n, m_count, n_count, positions)
    tl.store(y + where, total.to(y.dtype.element_ty), mask)


@triton.jit
def _channels_first(m, n, m_count, n_count, positions):
    """Where outputs are among images of ``positions`` with channels first, and which of them there are, (n, m)."""
    # Masked by images, not by m: where positions are a multiple of 16, the compiler sees that so many have one mask.
    image = m // positions
    where = (image.to(tl.int64)[None, :] * n_count + n[:, None]) * positions + (m % positions)[None, :]
    return where, (n < n_count)[:, None] & (image < m_count // positions)[None, :]


@triton.jit
def _finished(total, constant, hidden, up, m, n, m_count, n_count, rank, BLOCK_R: tl.constexpr):
    """``total`` (n, m) with bias and low-rank branch."""
    total += constant[:, None]
    if BLOCK_R > 0:
        rows = hidden + m.to(tl.int64) * rank
        for first in tl.range(0, rank, BLOCK_R, num_stages=1):
            r = first + tl.arange(0, BLOCK_R)
            left = tl.load(up + n[:, None] * rank + r[None, :], (n < n_count)[:, None] & (r < rank)[None, :], 0.0)
            right = tl.load(rows[None, :] + r[:, None], (m < m_count)[None, :] & (r < rank)[:, None], 0.0)
            total = tl.dot(left, right, acc=total, input_precision="ieee", out_dtype=tl.float32)
    return total


@triton.jit
def _advanced(chunk, column, row, units, KERNEL_W: tl.constexpr):
    """The next channels, or where there are none the next tap's first."""
    after = (chunk + 1 == units).to(tl.int32)
    chunk, column = (chunk + 1) * (1 - after), column + after
    after = (column == KERNEL_W).to(tl.int32)
    return chunk, column * (1 - after), row + after


@triton.jit
def _offsets(
    row, column, chunk, start, k, width, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr
):  # fmt: skip
    """Where a tap's channels begin: in codes, from the first tap's, and in a row of weights."""
    channel = start + chunk * ALIGN
    return (row * DILATION_H * width + column * DILATION_W) * k + channel, (row * KERNEL_W + column) * k + channel


@triton.jit
def _channels(at, at_2, units, CODES: tl.constexpr, BLOCK_K: tl.constexpr):
    """Bytes of a step, which begin at two places, and which of them there are; ``CODES`` are in a byte."""
    TILE: tl.constexpr = ALIGN // CODES
    c = tl.arange(0, BLOCK_K // CODES)
    found = tl.where(c < TILE, at // CODES, at_2 // CODES - TILE) + c
    return tl.max_contiguous(tl.multiple_of(found, 16), 16), c < units * TILE


@triton.jit
def _beside(position, tap, width, KERNEL_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr):
    """The positions that outputs see through a tap, of those that they see through the first."""
    return position + tap // KERNEL_W * DILATION_H * width + tap % KERNEL_W * DILATION_W


@triton.jit
def _unpacked(pairs):
    """Two codes of 4 bits a byte, ``(n, c / 2)``, to ``(n, c)`` int8 of 16 times each.

    Sixteenfold, a code lies in the high half of its byte, and nothing has to be done about its sign. Byte i of a tile
    of ``ALIGN`` holds channels i and i + ALIGN / 2, see :func:`quantsr.kernels.operands.pack`.
    """
    if INTERPRETED:
        low, high = (pairs << 4).to(tl.int8), pairs & -16
    else:
        # Four bytes at a time, as the compiler does not.
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 up; shl.b32 up, $2, 4; and.b32 $0, up, 0xF0F0F0F0; and.b32 $1, $2, 0xF0F0F0F0; }",
            "=r,=r,r", [pairs], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    HALF: tl.constexpr = ALIGN // 2
    rows: tl.constexpr = pairs.shape[0]
    tiles: tl.constexpr = pairs.shape[1] // HALF
    both = tl.join(low.reshape(rows, tiles, HALF), high.reshape(rows, tiles, HALF))
    return both.permute(0, 1, 3, 2).reshape(rows, tiles * ALIGN)
