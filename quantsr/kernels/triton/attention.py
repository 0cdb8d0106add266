"""Attention of codes in one kernel: scores and probabilities never reach the GPU's memory.

Probabilities are quantized after they are normalized, so that the keys are gone through twice: once for the largest
score and the sum of exponentials of every query, once for codes and their product with the values.
"""

import triton
import triton.language as tl

from quantsr.kernels.triton.quantize import MAGIC, WHOLE, round_half_to_even

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["queries", "keys", "heads", "channels"])
def attention_kernel(
    q, q_sums, q_scale, q_zero, k, k_sums, k_scale, k_zero, v, v_sums, v_scale, v_zero,
    p_scale, p_zero, key_scale, y, heads, queries, keys, row, channels, root,
    HALF: tl.constexpr, KEY_SCALE: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes ``BLOCK_Q`` queries of one head.

    q, k     (b * heads, queries or keys, K) int8 codes, ``channels`` of them a head's, the rest 0
    v        (b * heads, channels, row) int8, of every channel the codes of all keys, as tensor cores take them
    *_sums   of the codes of q and k, (b * heads, queries or keys), and of v, (b * heads, channels)
    y        (b, queries, heads, channels)        root  sqrt of ``channels``
    HALF     of the probabilities' codes          BLOCK_C  a power of 2, at least K
    """
    blocks = tl.cdiv(queries, BLOCK_Q)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    c, j = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    q_z, k_z, v_z = tl.load(q_zero).to(tl.int32), tl.load(k_zero).to(tl.int32), tl.load(v_zero).to(tl.int32)
    codes_of_q = tl.load(
        q + (head * queries + n)[:, None] * K + c[None, :], (n < queries)[:, None] & (c < K)[None, :], 0
    )
    sums_of_q = tl.load(q_sums + head * queries + n, n < queries, 0)
    # Of every score, in units of the exponential of base 2.
    unit = tl.load(q_scale) * tl.load(k_scale) / root * LOG2_E
    k += head * keys * K
    k_sums += head * keys
    v += head * channels * row

    largest = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_Q,), 0.0, tl.float32)
    for start in range(0, keys, BLOCK_K):
        s = _scores(codes_of_q, sums_of_q, k, k_sums, start + j, keys, q_z, k_z, channels, unit, c, K)
        above = tl.maximum(largest, tl.max(s, axis=1))
        total = total * tl.exp2(largest - above) + tl.sum(tl.exp2(s - above[:, None]), axis=1)
        largest = above

    scale, zero = tl.load(p_scale), tl.load(p_zero)
    near = tl.minimum(tl.maximum(zero, -128.0), 127.0)
    low, high = -HALF - zero, HALF - 1 - zero
    share = 1.0 / (total * scale)
    acc = tl.full((BLOCK_Q, BLOCK_C), 0, tl.int32)
    counted = tl.full((BLOCK_Q,), 0, tl.int32)
    for start in range(0, keys, BLOCK_K):
        at = start + j
        s = _scores(codes_of_q, sums_of_q, k, k_sums, at, keys, q_z, k_z, channels, unit, c, K)
        p = tl.exp2(s - largest[:, None]) * share[:, None]
        if KEY_SCALE:
            p *= tl.load(key_scale + at, at < keys, 0.0)[None, :]
        p = tl.minimum(tl.maximum(p, low), high)
        if tl.abs(zero) < WHOLE / 4:
            code = (p + MAGIC).to(tl.int32, bitcast=True) + (zero.to(tl.int32) - 0x4B400000)
        else:  # Hardly ever: of a range far from 0.
            code = tl.minimum(tl.maximum(round_half_to_even(p) + zero, -HALF), HALF - 1).to(tl.int32)
        code = tl.where((at < keys)[None, :], code, 0)
        counted += tl.sum(code, axis=1)
        of_v = tl.load(v + c[:, None] * row + at[None, :], (c < channels)[:, None] & (at < row)[None, :], 0)
        acc = tl.dot(code.to(tl.int8), tl.trans(of_v), acc=acc, out_dtype=tl.int32)

    near_z = near.to(tl.int32)
    centered = tl.load(v_sums + head * channels + c, c < channels, 0) - keys * v_z
    acc -= (counted - keys * near_z)[:, None] * v_z + near_z * (centered + keys * v_z)[None, :]
    result = (acc.to(tl.float32) - (zero - near) * centered.to(tl.float32)[None, :]) * (scale * tl.load(v_scale))
    where = ((head // heads * queries + n) * heads + head % heads)[:, None] * channels + c[None, :]
    tl.store(y + where, result.to(y.dtype.element_ty), (n < queries)[:, None] & (c < channels)[None, :])


@triton.jit
def _scores(codes_of_q, sums_of_q, k, k_sums, at, keys, q_z, k_z, channels, unit, c, K: tl.constexpr):
    """Scores of keys ``at``, ``(queries, keys)``; of those behind the last one, -inf."""
    here = at < keys
    of_k = tl.load(k + at[:, None].to(tl.int64) * K + c[None, :], here[:, None] & (c < K)[None, :], 0)
    found = tl.dot(codes_of_q, tl.trans(of_k), out_dtype=tl.int32)
    centered = tl.load(k_sums + at, here, 0) - channels * k_z
    found -= sums_of_q[:, None] * k_z + (q_z * centered)[None, :]
    return tl.where(here[None, :], found.to(tl.float32) * unit, float("-inf"))
