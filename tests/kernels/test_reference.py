"""The plain PyTorch products are those of int64, and codes those of the simulation."""

import pytest
import torch

from quantsr.kernels import Branch, QuantizedInput, QuantizedWeight, accumulate, product, quantize, quantize_tokens
from quantsr.kernels.operands import LONGEST_SUM, align, part_sums
from quantsr.kernels.reference import integer_product
from quantsr.quant.affine import SMALLEST_SCALE
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import AffineSpec
from tests.kernels.operands import LINEAR, convolve, expected_product, extreme, random_input, random_weight, values
from tests.kernels.test_window import EVERY_WINDOW

BITS = pytest.mark.parametrize("bits", [8, 4], ids=["w8a8", "w4a4"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("k", [1, 1023, 1024, 1025, 5000])
def test_sums_beyond_what_float32_holds(k):
    a = torch.randint(-128, 128, (3, k), dtype=torch.int8)
    a[0] = -128
    b = torch.randint(-128, 128, (k, 2), dtype=torch.int8)
    b[:, 0], b[-1] = -128, -127
    found = integer_product(a, b, 2**14)
    assert found.dtype == torch.int32 and torch.equal(found.long(), a.long() @ b.long())


@EVERY_WINDOW
@BITS
def test_sums_of_codes(window, positions, bits):
    x = random_input(positions, (5, 3), bits, padding=window.padding)
    weight = random_weight(6, window.taps, (5, 3), bits)
    codes = (values(t, torch.zeros(2), (5, 3)) for t in (x.codes, weight.unpacked))
    assert torch.equal(accumulate(x, weight, window).long(), convolve(*codes, window.valid))


@EVERY_WINDOW
@BITS
@pytest.mark.parametrize("by_token", [False, True], ids=["by_tensor", "by_token"])
@pytest.mark.parametrize("zeros", [0, 8, 300])
def test_products_of_values(window, positions, bits, by_token, zeros):
    """Whole numbers below 2^24 come out exactly; zeros of 300 are no codes."""
    x = random_input(positions, (5, 3), bits, by_token, zeros, window.padding)
    weight = random_weight(6, window.taps, (5, 3), bits, zeros)
    bias = torch.arange(6.0)
    assert torch.equal(product(x, weight, window, bias).long(), expected_product(x, weight, window) + bias.long())


def test_the_longest_sum_just_fits():
    x, weight = random_input((1,), (LONGEST_SUM,)), random_weight(1, 1, (LONGEST_SUM,), zeros=0)
    x, weight = extreme(x, 127, LONGEST_SUM), extreme(weight, -128, LONGEST_SUM)
    x.zero.fill_(-128)
    assert product(x, weight, LINEAR).item() == -255 * 128 * LONGEST_SUM


def test_scales_and_branch():
    x, weight = random_input((4,), (5, 3)), random_weight(6, 1, (5, 3))
    x = QuantizedInput(x.codes, x.sums, torch.tensor([0.5, 0.25]), x.zero)
    weight = QuantizedWeight(weight.codes, weight.sums, torch.rand(6, 2), weight.zero, (5, 3))
    branch = Branch(torch.randn(4, 2), torch.randn(6, 2))
    parts = [values(x.codes, x.zero, (5, 3)).split([5, 3], 1)]
    parts.append(values(weight.codes[:, 0], weight.zero, (5, 3)).split([5, 3], 1))
    expected = sum(
        (a @ b.T).double() * s * t.double()
        for a, b, s, t in zip(*parts, (0.5, 0.25), weight.scale.unbind(1), strict=True)
    )
    expected += branch.hidden.double() @ branch.up.double().T
    torch.testing.assert_close(product(x, weight, LINEAR, branch=branch).double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_codes_are_those_of_the_simulation(bits, symmetric, shift):
    sizes, x = (4, 3), torch.randn(6, 7) * 3 + shift
    quantizer = Quantizer(AffineSpec(bits, symmetric=symmetric), sizes, axis=-1)
    quantizer.set_bounds(torch.tensor([-2.0, -0.5]) + shift, torch.tensor([3.0, 1.0]) + shift)
    scale, zero_point = quantizer.part_qparams(x)
    shift_of_codes = quantizer.spec.qmin + 2 ** (bits - 1)
    found = quantize(x, scale, zero_point - shift_of_codes, bits, sizes)
    codes = (quantizer.quantize(x) - shift_of_codes).to(torch.int8)
    assert torch.equal(found.codes, align(codes, sizes)) and torch.equal(found.sums, part_sums(found.codes, sizes))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", [{}, {"symmetric": True, "ratio": 0.9}], ids=["asymmetric", "symmetric"])
def test_codes_of_tokens_are_those_of_the_simulation(bits, options):
    sizes, x = (4, 3), torch.randn(2, 6, 7) * torch.logspace(-3, 3, 6)[:, None] + 1
    x[0, 0] = 0.7
    spec = AffineSpec(bits, granularity="token", range="dynamic", **options)
    quantizer = Quantizer(spec, sizes, axis=-1)
    found = quantize_tokens(x, bits, sizes, spec.symmetric, spec.ratio, SMALLEST_SCALE)
    scale, zero_point = quantizer.part_qparams(x)
    shift = spec.qmin + 2 ** (bits - 1)
    assert torch.equal(found.scale, scale) and torch.equal(found.zero, zero_point - shift)
    # A constant part has a zero point so large that float32 holds it with gaps: its one value is what counts.
    varied = x[:, 1:]
    codes = align((quantizer.quantize(varied) - shift).to(torch.int8), sizes)
    assert torch.equal(found.codes[:, 1:], codes)
