"""Both products of quantized attention as OpenVINO operations, multiplied as integers where bounds are static.

The plugin fuses products and softmax, and multiplies as integers what comes from a FakeQuantize, if the second factor
is signed and neither has a zero point. So with  a^ = a' - o,  a' a multiple of its step and o what is left of its zero
point once codes are shifted into int8 (nothing below 8 bits, where no bound is far off), hats for what the simulation
has:

    q^ k^T  =  q' k'^T  -  o_q sum_c k^  +  what is the same for all keys, and falls out of the softmax
    p^ v^   =  p' v'  -  o_v sum p'  -  o_p sum v^           (sums over the keys)

The sum of p' is the product with one more channel of v', whose codes are 1.
"""

from dataclasses import dataclass

import numpy as np
import openvino.opset13 as op
from openvino import Output

from quantsr.deploy.openvino.quantize import INTEGER_BITS, LEVELS, constant, quantized, static_qparams
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.quantizer import Quantizer

SIGNED, UNSIGNED = -128, 0
"""Lowest of the 256 integers that stand for codes."""


@dataclass(frozen=True)
class Factor:
    """A quantized activation without a zero point: it is ``values - offset``.

    Attributes:
        values: ``step`` times integers.
        step: between two of them.
        offset: 0 where integers can be counted from the zero point.
        one: the input that becomes the integer 1.
    """

    values: Output
    step: float
    offset: float
    one: float

    def dequantized(self) -> Output:
        """The activation, as the simulation has it."""
        return op.subtract(self.values, constant(self.offset)).output(0) if self.offset else self.values


def why_not(attention: QuantizedAttention) -> str | None:
    """Why the products stay in floating point; None where they do not."""
    act = attention.recipe.act
    if act.bits > INTEGER_BITS:
        return f"attention of {act.bits} bits"
    return "attention with a scale per token" if act.range == "dynamic" else None


def attention_output(
    attention: QuantizedAttention, q: Output, k: Output, v: Output, key_scale: Output | None
) -> Output:
    """What ``attention.products(q, k, v, key_scale)`` computes.

    Args:
        attention: calibrated.
        q: ``(b, heads, n, c)``.
        k, v: ``(b, heads, m, c)``.
        key_scale: ``(m,)``, of the probabilities.
    """
    gain = attention.head_dim**-0.5
    if why_not(attention) is not None:
        q, k, v = (
            quantized(x, quantizer, 0).dequantized()
            for x, quantizer in ((q, attention.query), (k, attention.key), (v, attention.value))
        )
        p = _probabilities(op.matmul(op.multiply(q, constant(gain)), k, False, True).output(0), key_scale)
        return op.matmul(quantized(p, attention.probability, 0).dequantized(), v, False, False).output(0)
    # Transposed before it is quantized: with AMX, OpenVINO 2026.4 takes constant keys of another order wrongly.
    k = op.transpose(k, constant([0, 1, 3, 2], np.int64)).output(0)
    query, key = factor(q, attention.query, SIGNED, gain), factor(k, attention.key, SIGNED)
    scores = op.matmul(query.values, key.values, False, False).output(0)
    if query.offset:
        per_key = _sum(key.dequantized(), 2)
        scores = op.subtract(scores, op.multiply(_for_one_head(per_key, q), constant(query.offset))).output(0)
    p, value = factor(_probabilities(scores, key_scale), attention.probability, UNSIGNED), _value(attention, v)
    y = op.matmul(p.values, value.values, False, False).output(0)
    if value.offset:
        y, ones = op.variadic_split(y, constant(3, np.int64), constant([attention.head_dim, 1], np.int64)).outputs()
        y = op.subtract(y, op.multiply(ones, constant(value.offset / value.step))).output(0)
    if p.offset:
        every = _sum(factor(v, attention.value, SIGNED).dequantized(), 2)
        y = op.subtract(y, op.multiply(every, constant(p.offset))).output(0)
    return y


def factor(x: Output, quantizer: Quantizer, lowest: int, gain: float = 1.0) -> Factor:
    """Qa(x) times ``gain``, its codes counted so that they are within ``lowest`` and ``lowest + 255``."""
    spec, (scale, zero_point) = quantizer.spec, (float(t) for t in static_qparams(quantizer))
    highest = lowest + LEVELS - 1
    # The code that becomes 0: its zero point, or the next one that leaves room for all codes.
    origin = min(max(zero_point, spec.qmax - highest), spec.qmin - lowest)

    def before(integer: float) -> float:
        return (integer + origin - zero_point) * scale

    if spec.qmin - origin > lowest:
        x = op.maximum(x, constant(before(spec.qmin - origin))).output(0)
    if spec.qmax - origin < highest:
        x = op.minimum(x, constant(before(spec.qmax - origin))).output(0)
    step = gain * scale
    ends = before(lowest), before(highest), lowest * step, highest * step
    values = op.fake_quantize(x, *(constant(end) for end in ends), LEVELS).output(0)
    return Factor(values, step, (zero_point - origin) * step, before(1))


def _value(attention: QuantizedAttention, v: Output) -> Factor:
    """The second product's second factor, with a channel of ones behind the others where it has an offset."""
    value = factor(v, attention.value, SIGNED)
    if not value.offset:
        return value
    none, one = constant([0, 0, 0, 0], np.int64), constant([0, 0, 0, 1], np.int64)
    return factor(op.pad(v, none, one, "constant", constant(value.one)).output(0), attention.value, SIGNED)


def _for_one_head(per_key: Output, q: Output) -> Output:
    """``(b, heads, 1, m)`` written out for every query where there is one head, as in a VAE.

    With AMX and float32, OpenVINO 2026.4 reads the wrong elements of a row that it broadcasts in fused attention of one
    head; of more heads it does not.
    """
    if q.get_partial_shape()[1] != 1:
        return per_key
    queries = op.gather(op.shape_of(q), constant([2], np.int64), constant(0, np.int64))
    one = constant([1], np.int64)
    return op.tile(per_key, op.concat([one, one, queries, one], 0)).output(0)


def _probabilities(scores: Output, key_scale: Output | None) -> Output:
    p = op.softmax(scores, -1).output(0)
    return p if key_scale is None else op.multiply(p, key_scale).output(0)


def _sum(x: Output, axis: int) -> Output:
    return op.reduce_sum(x, constant([axis], np.int64), True).output(0)
