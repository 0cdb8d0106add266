"""Activation values to codes, with given scales or with those of every token itself."""

import triton
import triton.language as tl


@triton.jit
def round_half_to_even(v):
    """As torch.round does; no function of the GPU's libraries, so that the interpreter runs it too."""
    down = tl.floor(v)
    rest = v - down
    odd = down - 2.0 * tl.floor(down * 0.5)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1.0)), down + 1.0, down)


@triton.jit
def quantize_kernel(
    x, codes, sums, scale, zero, firsts, starts, sizes,
    tokens, spatial, k, stride_batch, stride_spatial, stride_channel,
    ratio, levels, smallest,
    PARTS: tl.constexpr, HALF: tl.constexpr, BY_TOKEN: tl.constexpr, DYNAMIC: tl.constexpr, SYMMETRIC: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program quantizes one part of the channels of ``BLOCK_M`` tokens.

    x           values of ``tokens`` = images * ``spatial`` positions, anywhere in memory, by strides
    codes       (tokens, k) int8        sums   (tokens, PARTS) int32
    scale, zero (PARTS,), or with BY_TOKEN (tokens, PARTS): read, or with DYNAMIC written
    firsts      first channel of every part in x;  starts  in codes, in tiles of ``ALIGN``;  sizes  channels of it
    ratio       share of the extremes;  levels  qmax - qmin, or with SYMMETRIC qmax;  smallest  scale
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.program_id(1)
    channel = tl.arange(0, BLOCK_K)
    inside = m < tokens
    first, size = tl.load(firsts + p), tl.load(sizes + p)
    start, end = tl.load(starts + p) * ALIGN, tl.load(starts + p + 1) * ALIGN
    # In 64 bits: a batch of large images has more than 2^31 elements.
    rows = x + (m // spatial).to(tl.int64) * stride_batch + (m % spatial).to(tl.int64) * stride_spatial
    out = codes + m.to(tl.int64) * k + start
    if DYNAMIC:
        lower = tl.full((BLOCK_M,), float("inf"), tl.float32)
        upper = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        for c in range(0, size, BLOCK_K):
            known = inside[:, None] & (c + channel < size)[None, :]
            v = tl.load(rows[:, None] + (first + c + channel).to(tl.int64)[None, :] * stride_channel, known, 0.0)
            v = v.to(tl.float32)
            lower = tl.minimum(lower, tl.min(tl.where(known, v, float("inf")), axis=1))
            upper = tl.maximum(upper, tl.max(tl.where(known, v, float("-inf")), axis=1))
        lower, upper = tl.where(inside, lower, 0.0) * ratio, tl.where(inside, upper, 0.0) * ratio
        if SYMMETRIC:
            s = tl.maximum(tl.math.div_rn(tl.maximum(tl.abs(lower), tl.abs(upper)), levels), smallest)
            z = tl.full((BLOCK_M,), 0.0, tl.float32)
        else:
            s = tl.maximum(tl.math.div_rn(upper - lower, levels), smallest)
            z = round_half_to_even(tl.math.div_rn(-lower, s)) - HALF
        tl.store(scale + m * PARTS + p, s, inside)
        tl.store(zero + m * PARTS + p, z, inside)
    elif BY_TOKEN:
        s = tl.load(scale + m * PARTS + p, inside, 1.0)
        z = tl.load(zero + m * PARTS + p, inside, 0.0)
    else:
        s = tl.full((BLOCK_M,), 1.0, tl.float32) * tl.load(scale + p)
        z = tl.full((BLOCK_M,), 0.0, tl.float32) + tl.load(zero + p)
    total = tl.full((BLOCK_M,), 0, tl.int32)
    for c in range(0, end - start, BLOCK_K):
        known = inside[:, None] & (c + channel < size)[None, :]
        v = tl.load(rows[:, None] + (first + c + channel).to(tl.int64)[None, :] * stride_channel, known, 0.0)
        q = round_half_to_even(tl.math.div_rn(v.to(tl.float32), s[:, None] + tl.full((1, BLOCK_K), 0.0, tl.float32)))
        q = tl.minimum(tl.maximum(q, (-HALF - z)[:, None]), (HALF - 1 - z)[:, None]) + z[:, None]
        q = tl.minimum(tl.maximum(q, -HALF), HALF - 1).to(tl.int32)
        q = tl.where(known, q, 0)
        stored = inside[:, None] & (c + channel < end - start)[None, :]
        tl.store(out[:, None] + (c + channel)[None, :], q.to(tl.int8), stored)
        total += tl.sum(q, axis=1)
    tl.store(sums + m * PARTS + p, total, inside)
