"""Attention of codes: the reference computes its formula, and the Triton kernel what the reference computes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quantsr.kernels import Probabilities, QuantizedInput, attention
from quantsr.kernels.operands import MOST_KEYS
from tests.kernels.operands import random_input, values
from tests.kernels.test_triton import on

SHAPES = {  # images, heads, queries, keys, channels of a head
    "tiny": (1, 1, 1, 1, 4),
    "self": (2, 2, 40, 40, 40),
    "cross": (1, 2, 35, 77, 64),
    "one_head": (1, 1, 33, 33, 80),
    "wide": (1, 1, 5, 70, 160),
}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
BITS = pytest.mark.parametrize("bits", [8, 6, 4, 2])


def factor(positions: tuple[int, ...], channels: int, bits: int, scale: float) -> QuantizedInput:
    x = random_input(positions, (channels,), bits, zeros=2 ** (bits - 1) - 1)
    return replace(x, scale=torch.tensor([scale]))


def operands(shape, bits: int = 8, zero: float | None = None, key_scale: bool = False, peak: float = 2.0):
    """Codes of q, k and v, whose scores spread over a few units, and a number format that holds 0 to 1."""
    images, heads, queries, keys, channels = shape
    unit = (peak / 4 ** (bits - 1)) ** 0.5
    lengths = ((queries, channels), (keys, channels), (channels, keys))
    q, k, v = (factor((images, heads, n), summed, bits, unit) for n, summed in lengths)
    zero = -(2 ** (bits - 1)) if zero is None else zero
    scales = torch.rand(keys) + 0.5 if key_scale else None
    scale = torch.tensor([1.0 / (2**bits - 1)])
    return q, k, v, Probabilities(scale, torch.tensor([float(zero)]), bits, scales), channels


def written_out(q, k, v, probabilities: Probabilities, channels: int) -> Tensor:
    """The formula in float64, with probabilities rounded as numbers, not as codes."""
    lengths = (channels, channels, k.codes.shape[-2])
    left, right, value = (
        values(t.codes, t.zero, (length,)).double() * t.scale.double()
        for t, length in zip((q, k, v), lengths, strict=True)
    )
    p = (left @ right.mT / channels**0.5).softmax(-1)
    if probabilities.key_scale is not None:
        p = p * probabilities.key_scale
    half, zero, scale = 2 ** (probabilities.bits - 1), probabilities.zero.double(), probabilities.scale.double()
    return (p / scale).round().clamp(-half - zero, half - 1 - zero) * scale @ value.mT


def assert_near(found: Tensor, expected: Tensor, v: QuantizedInput, probabilities: Probabilities) -> None:
    """Equal but where the last bit of a probability decides between two codes."""
    step = float(probabilities.scale * v.scale) * 255
    rounding = 1e-3 * step + 2e-7 * float(expected.abs().max())
    difference = (found.double() - expected.double()).abs()
    assert difference.max() <= step + rounding
    assert (difference > rounding).double().mean() < 0.05


OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"key_scale": True}, {"zero": -140.0}, {"zero": -1e7}, {"peak": 400.0}],
    ids=["plain", "key_scale", "zero_is_no_code", "far_zero", "peaked"],
)


@EVERY_SHAPE
@BITS
def test_the_reference_is_the_formula(shape, bits):
    given = operands(shape, bits)
    assert_near(attention(*given, backend="reference"), written_out(*given), given[2], given[3])


@OPTIONS
def test_formats_of_probabilities_and_the_reference(options):
    given = operands(SHAPES["self"], **options)
    assert_near(attention(*given, backend="reference"), written_out(*given), given[2], given[3])


def test_the_reference_computes_in_pieces(monkeypatch):
    given = operands(SHAPES["self"])
    whole = attention(*given, backend="reference")
    monkeypatch.setattr("quantsr.kernels.reference.PIECE", 7 * 40 * 4)
    assert torch.equal(attention(*given, backend="reference"), whole)


def on_device(device, given):
    q, k, v, probabilities, channels = given
    return *(on(device, t) for t in (q, k, v)), on(device, probabilities), channels


@EVERY_SHAPE
@BITS
def test_the_kernel_computes_the_reference(device, shape, bits):
    given = operands(shape, bits, key_scale=bits == 6)
    found = attention(*on_device(device, given), backend="triton")
    images, heads, queries, _, channels = shape
    assert found.shape == (images, heads, queries, channels)
    assert found.transpose(1, 2).is_contiguous()
    assert_near(found.cpu(), attention(*given, backend="reference"), given[2], given[3])


@OPTIONS
def test_formats_of_probabilities_and_the_kernel(device, options):
    given = operands(SHAPES["self"], **options)
    found = attention(*on_device(device, given), backend="triton")
    assert_near(found.cpu(), attention(*given, backend="reference"), given[2], given[3])


def test_one_certain_key_gives_its_value_exactly(device):
    """Whole numbers throughout: the probabilities are 0 and 1, which have codes."""
    q, k, v, probabilities, channels = operands(SHAPES["self"])
    codes = torch.zeros_like(q.codes)
    codes[..., range(40), range(40)] = 127
    sums = codes.sum(-1, keepdim=True, dtype=torch.int32)
    q, k = (replace(t, codes=codes, sums=sums, zero=torch.zeros(1), scale=torch.ones(1)) for t in (q, k))
    v = replace(v, scale=torch.ones(1))
    expected = values(v.codes, v.zero, (40,)).float().mT
    given = q, k, v, replace(probabilities, scale=torch.tensor([1 / 255])), channels
    for found in (attention(*on_device(device, given), backend="triton"), attention(*given, backend="reference")):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=0)


def test_types_of_the_result(device):
    given = operands(SHAPES["tiny"])
    for dtype in (torch.float16, torch.bfloat16):
        for backend in ("reference", "triton"):
            y = attention(*on_device(device, given), dtype=dtype, backend=backend)
            assert y.dtype == dtype


def test_no_images(device):
    given = operands(SHAPES["tiny"])
    q, k, v = (replace(t, codes=t.codes[:0], sums=t.sums[:0]) for t in given[:3])
    assert attention(*on_device(device, (q, k, v, *given[3:])), backend="triton").shape == (0, 1, 1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, p, c: (q, k, replace(v, codes=v.codes[:, :, :-1]), p, c), "are not of the same heads, keys"),
        (lambda q, k, v, p, c: (q, k, replace(v, codes=v.codes[..., :40]), p, c), "are not of the same heads, keys"),
        (lambda q, k, v, p, c: (replace(q, codes=q.codes[:, :1]), k, v, p, c), "are not of the same heads"),
        (lambda q, k, v, p, c: (q, k, v, p, 80), "are not of the same heads, keys and 80 channels"),
        (lambda q, k, v, p, c: (replace(q, codes=q.codes[..., :40]), k, v, p, c), "codes of 40 and 64"),
        (lambda q, k, v, p, c: (replace(q, sums=None), k, v, p, c), "and sums of them"),
        (lambda q, k, v, p, c: (q, k, v, replace(p, key_scale=torch.ones(3)), c), "3 scales of keys .* 40 keys"),
    ],
    ids=["other_values", "other_keys", "other_heads", "other_channels", "not_aligned", "no_sums", "key_scales"],
)
def test_operands_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        attention(*change(*operands(SHAPES["self"])))


def test_more_keys_than_int32_sums_are_refused():
    q, k, v, probabilities, channels = operands((1, 1, 1, MOST_KEYS + 1, 4), 4)
    with pytest.raises(ValueError, match=f"{MOST_KEYS + 1} keys are summed in int32"):
        attention(q, k, v, probabilities, channels)
