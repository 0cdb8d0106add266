"""Activation values to codes, with given scales or with those of every token itself."""

import triton
import triton.language as tl

WHOLE = tl.constexpr(2.0**23)
"""From here on, float32 holds whole numbers only."""
MAGIC = tl.constexpr(1.5 * 2.0**23)
"""Added to a number of up to 2^22, it leaves the nearest whole number in the last bits."""
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def round_half_to_even(v):
    """As torch.round does; no function of the GPU's libraries, so that the interpreter runs it too."""
    rounded = (tl.abs(v) + WHOLE) - WHOLE
    return tl.where(tl.abs(v) < WHOLE, tl.where(v < 0, -rounded, rounded), v)


@triton.jit
def divided(v, s, inverse):
    """v / s as IEEE rounds it, with 1 / s known: two Newton steps, of which the last leaves no error (Markstein)."""
    if INTERPRETED:
        return tl.math.div_rn(v, s)  # It has no fused multiplication and addition.
    near = v * inverse
    q = tl.fma(tl.fma(-near, s, v), inverse, near)
    q = tl.fma(tl.fma(-q, s, v), inverse, q)
    return tl.where(q == q, q, near)  # What an infinity leaves is no number.


@triton.jit(do_not_specialize=["tokens", "size", "height", "width", "pad_h", "pad_w"])
def quantize_kernel(
    x, codes, sums, scale, zero, firsts, starts, sizes,
    tokens, k, size, height, width, pad_h, pad_w, stride_image, stride_h, stride_w, stride_channel,
    ratio, levels, smallest,
    PARTS: tl.constexpr, HALF: tl.constexpr, BY_TOKEN: tl.constexpr, DYNAMIC: tl.constexpr, SYMMETRIC: tl.constexpr,
    SUMS: tl.constexpr, PADDED: tl.constexpr, FILLED: tl.constexpr, WHOLE_TOKENS: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program quantizes one part of the channels of ``BLOCK_M`` tokens, or without WHOLE_TOKENS a piece of it.

    x           values of images without padding, anywhere in memory, by strides
    codes       (tokens, k) int8, of images of ``height`` * ``width`` tokens with padding
    sums        (tokens, PARTS) int32; without WHOLE_TOKENS 0 before, as programs add what each of them has found
    scale, zero (PARTS,), or with BY_TOKEN (tokens, PARTS): read, or with DYNAMIC written
    firsts      first channel of every part in x;  starts  in codes, in tiles of ``ALIGN``;  sizes  channels of it:
                with PARTS > 1, else size; only with FILLED some part is no multiple of ``ALIGN``
    ratio       share of the extremes;  levels  qmax - qmin, or with SYMMETRIC qmax;  smallest  scale
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.program_id(1)
    channel = tl.arange(0, BLOCK_K)
    stored, i, j = m < tokens, (m // width) % height - pad_h, m % width - pad_w
    inside = stored
    if PADDED:
        inside &= (i >= 0) & (i < height - 2 * pad_h) & (j >= 0) & (j < width - 2 * pad_w)
    first, start, end = 0, 0, k
    if PARTS > 1:
        first, size = tl.load(firsts + p), tl.load(sizes + p)
        start, end = tl.load(starts + p) * ALIGN, tl.load(starts + p + 1) * ALIGN
    if not FILLED:
        size = end - start  # The compiler sees that it is a multiple, and loads 16 bytes at a time.
    # In 64 bits: a batch of large images has more than 2^31 elements.
    rows = x + (m // (width * height)).to(tl.int64) * stride_image
    rows += i.to(tl.int64) * stride_h + j.to(tl.int64) * stride_w
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
        # Padding has a scale of 1 and no zero.
        s, z = tl.where(inside, s, 1.0), tl.where(inside, z, 0.0)
        tl.store(scale + m * PARTS + p, s, stored)
        tl.store(zero + m * PARTS + p, z, stored)
    elif BY_TOKEN:
        s = tl.load(scale + m * PARTS + p, stored, 1.0)
        z = tl.load(zero + m * PARTS + p, stored, 0.0)
    else:
        s = tl.full((BLOCK_M,), 1.0, tl.float32) * tl.load(scale + p)
        z = tl.full((BLOCK_M,), 0.0, tl.float32) + tl.load(zero + p)
    inverse = tl.math.div_rn(tl.full((BLOCK_M,), 1.0, tl.float32), s)
    nothing = tl.minimum(tl.maximum(z, -128.0), 127.0).to(tl.int32)
    farthest = tl.max(tl.abs(z), axis=0)
    total = tl.full((BLOCK_M,), 0, tl.int32)
    if WHOLE_TOKENS:
        begin, stop = 0, end - start
    else:
        begin = tl.program_id(2) * BLOCK_K
        stop = tl.minimum(begin + BLOCK_K, end - start)
    for c in range(begin, stop, BLOCK_K):
        known = inside[:, None] & (c + channel < size)[None, :]
        v = tl.load(rows[:, None] + (first + c + channel).to(tl.int64)[None, :] * stride_channel, known, 0.0)
        q = divided(v.to(tl.float32), s[:, None], inverse[:, None])
        # Bounds are whole numbers: what is clamped before it is rounded is so after it as well.
        q = tl.minimum(tl.maximum(q, (-HALF - z)[:, None]), (HALF - 1 - z)[:, None])
        if farthest < WHOLE / 4:
            code = (q + MAGIC).to(tl.int32, bitcast=True) + (z.to(tl.int32) - 0x4B400000)[:, None]
        else:  # Hardly ever: of ranges far from 0.
            q = round_half_to_even(q) + z[:, None]
            code = tl.minimum(tl.maximum(q, -HALF), HALF - 1).to(tl.int32)
        if PADDED:
            code = tl.where(inside[:, None], code, nothing[:, None])
        if FILLED:
            code = tl.where((c + channel < size)[None, :], code, 0)
        mask = stored[:, None] & (c + channel < stop)[None, :]
        tl.store(out[:, None] + (c + channel)[None, :], code.to(tl.int8), mask)
        if SUMS:
            total += tl.sum(tl.where(mask, code, 0), axis=1)
    if SUMS:
        if WHOLE_TOKENS:
            tl.store(sums + m * PARTS + p, total, stored)
        else:
            tl.atomic_add(sums + m * PARTS + p, total, stored, sem="relaxed")
