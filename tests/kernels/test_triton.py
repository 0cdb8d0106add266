"""The Triton kernels compute the integers of the reference, bit for bit: on a GPU or in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quantsr.kernels import (
    Branch,
    QuantizedInput,
    accumulate,
    product,
    quantize,
    quantize_tokens,
)
from quantsr.kernels.operands import LONGEST_SUM
from tests.kernels.operands import LINEAR, Operand, extreme, random_input, random_weight
from tests.kernels.test_window import CUBE, EVERY_WINDOW

BITS = pytest.mark.parametrize("bits", [8, 4], ids=["w8a8", "w4a4"])
GRANULARITY = pytest.mark.parametrize("by_token", [False, True], ids=["by_tensor", "by_token"])
SIZES = pytest.mark.parametrize("sizes", [(7,), (3, 66)], ids=["odd", "two_parts"])


def on(device: torch.device, operand: Operand) -> Operand:
    tensors = {name: value.to(device) for name, value in vars(operand).items() if isinstance(value, Tensor)}
    return replace(operand, **tensors)


def assert_equal_inputs(found: QuantizedInput, expected: QuantizedInput) -> None:
    assert found.padding == expected.padding and (found.sums is None) == (expected.sums is None)
    for name, value in vars(expected).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, name).cpu(), value.cpu()), name


@EVERY_WINDOW
@BITS
@SIZES
def test_sums_of_codes_are_equal(device, window, positions, bits, sizes):
    x = random_input(positions, sizes, bits, padding=window.padding)
    weight = random_weight(5, window.taps, sizes, bits)
    found = accumulate(on(device, x), on(device, weight), window, backend="triton")
    assert found.dtype == torch.int32
    assert torch.equal(found.cpu(), accumulate(x, weight, window, backend="reference"))


@EVERY_WINDOW
@BITS
@SIZES
@GRANULARITY
def test_products_of_whole_numbers_are_equal(device, window, positions, bits, sizes, by_token):
    """Scales are 1 and sums below 2^24: the float epilogue is exact as well."""
    x = random_input(positions, sizes, bits, by_token, padding=window.padding)
    weight = random_weight(5, window.taps, sizes, bits)
    bias = torch.arange(5.0)
    found = product(on(device, x), on(device, weight), window, bias.to(device), backend="triton")
    assert torch.equal(found.cpu(), product(x, weight, window, bias, backend="reference"))


@EVERY_WINDOW
@SIZES
def test_channels_come_first_in_memory_where_they_shall(device, window, positions, sizes):
    x = random_input(positions, sizes, padding=window.padding)
    weight, bias = random_weight(5, window.taps, sizes), torch.arange(5.0)
    expected = product(x, weight, window, bias, channels_first=True, backend="reference")
    found = product(on(device, x), on(device, weight), window, bias.to(device), channels_first=True, backend="triton")
    assert torch.equal(found.cpu(), expected)
    assert torch.equal(expected, product(x, weight, window, bias, backend="reference"))
    assert all(y.movedim(-1, 1).is_contiguous() for y in (found, expected))


@EVERY_WINDOW
@GRANULARITY
def test_zeros_that_are_no_codes(device, window, positions, by_token):
    x, weight = (
        random_input(positions, (7, 3), 8, by_token, zeros=300, padding=window.padding),
        random_weight(5, window.taps, (7, 3), zeros=300),
    )
    assert (x.zero.abs() > 128).any()
    found = product(on(device, x), on(device, weight), window, backend="triton")
    assert torch.equal(found.cpu(), product(x, weight, window, backend="reference"))


def test_sums_that_float32_does_not_hold(device):
    x, weight = random_input((3,), (2048,)), random_weight(2, 1, (2048,))
    x, weight = extreme(x, -128, 2048), extreme(weight, -128, 2048)
    weight.codes[1, 0, 5] = 127
    found = accumulate(on(device, x), on(device, weight), LINEAR, backend="triton").cpu()
    assert found.tolist() == [[2**25, 2**25 - 128 * 255]] * 3


def test_the_longest_sum_just_fits(device):
    x, weight = random_input((1,), (LONGEST_SUM,)), random_weight(1, 1, (LONGEST_SUM,), zeros=0)
    x, weight = extreme(x, 127, LONGEST_SUM), extreme(weight, -128, LONGEST_SUM)
    x.zero.fill_(-128)
    found = product(on(device, x), on(device, weight), LINEAR, backend="triton")
    assert found.item() == -255 * 128 * LONGEST_SUM


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_other_widths(device, bits):
    x, weight = random_input((9,), (7, 3), bits), random_weight(5, 1, (7, 3), bits)
    found = product(on(device, x), on(device, weight), LINEAR, backend="triton")
    assert torch.equal(found.cpu(), product(x, weight, LINEAR, backend="reference"))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("outputs", [1, 33, 40])
def test_tiles_that_are_not_full(device, rows, outputs):
    x, weight = random_input((rows,), (5,)), random_weight(outputs, 1, (5,), 4)
    found = product(on(device, x), on(device, weight), LINEAR, backend="triton")
    assert torch.equal(found.cpu(), product(x, weight, LINEAR, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 20])
def test_scales_bias_and_branch(device, dtype, rank):
    x, weight = random_input((9,), (7, 3)), random_weight(5, 1, (7, 3))
    x, weight = replace(x, scale=torch.rand(2)), replace(weight, scale=torch.rand(5, 2))
    bias, hidden, up = torch.randn(5), torch.randn(9, rank).to(dtype), torch.randn(5, rank).to(dtype)
    branch, moved = Branch(hidden, up), Branch(hidden.to(device), up.to(device))
    if device.type == "cpu" and dtype == torch.bfloat16:
        branch = moved = None  # The interpreter multiplies the bits of bfloat16 as whole numbers.
    expected = product(x, weight, LINEAR, bias, branch, dtype, backend="reference")
    found = product(on(device, x), on(device, weight), LINEAR, bias.to(device), moved, dtype, backend="triton")
    assert found.dtype == dtype
    error = (found.cpu().double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error < 2 * max(torch.finfo(dtype).eps, 1e-6)


def test_no_rows(device):
    x, weight = random_input((4,), (5,)), random_weight(6, 1, (5,))
    none = replace(x, codes=x.codes[:0], sums=x.sums[:0])
    assert product(on(device, none), on(device, weight), LINEAR, backend="triton").shape == (0, 6)


def test_windows_over_three_axes_are_refused(device):
    x, weight = random_input((1, 3, 4, 5), (5,), padding=CUBE.padding), random_weight(2, 27, (5,))
    with pytest.raises(ValueError, match="the Triton kernels compute windows over two axes"):
        product(on(device, x), on(device, weight), CUBE, backend="triton")


LAYOUTS = {
    "tokens": lambda: torch.randn(37, 69),
    "channels_first": lambda: torch.randn(2, 69, 3, 5).movedim(1, -1),
    "channels_last": lambda: torch.randn(2, 3, 5, 69),
    "halves": lambda: torch.randn(37, 69).half(),
    "neither": lambda: torch.randn(3, 69, 2, 5).movedim(1, -1).transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@BITS
@GRANULARITY
def test_codes_are_equal(device, layout, bits, by_token):
    x, sizes = 3 * layout(), (3, 66)
    shape = (*x.shape[:-1], 2) if by_token else (2,)
    scale, zero = 0.1 + torch.rand(shape), torch.randint(-200, 200, shape).float()
    found = quantize(x.to(device), scale.to(device), zero.to(device), bits, sizes, backend="triton")
    assert_equal_inputs(found, quantize(x, scale, zero, bits, sizes, backend="reference"))


PADDED = {
    "conv1d": ((2, 7, 69), (2,)),
    "conv2d": ((2, 3, 5, 69), (1, 2)),
    "conv3d_over_time": ((2, 4, 2, 3, 69), (1, 0, 0)),
}


@pytest.mark.parametrize(("shape", "padding"), PADDED.values(), ids=PADDED.keys())
@GRANULARITY
@pytest.mark.parametrize("sums", [False, True], ids=["no_sums", "sums"])
def test_padding_has_the_code_of_zero(device, shape, padding, by_token, sums):
    """Of a zero that is no code of int8, the nearest; and of a token of its own, 0."""
    x, sizes = 3 * torch.randn(shape), (3, 66)
    scale, zero = 0.1 + torch.rand((*shape[:-1], 2) if by_token else 2), torch.tensor([-200.0, 5.0])
    zero = zero.expand(scale.shape).contiguous()
    operands = (x, scale, zero)
    expected = quantize(*operands, 4, sizes, padding, sums, backend="reference")
    found = quantize(*(t.to(device) for t in operands), 4, sizes, padding, sums, backend="triton")
    assert_equal_inputs(found, expected)
    corner = expected.codes[(0,) * (len(shape) - 1)]
    assert corner[0] == (0 if by_token else -128) and corner[64] == (0 if by_token else 5)
    assert not corner[3:64].any()
    found = quantize_tokens(x.to(device), 4, sizes, False, padding=padding, sums=sums, backend="triton")
    assert_equal_inputs(found, quantize_tokens(x, 4, sizes, False, padding=padding, sums=sums, backend="reference"))


@GRANULARITY
def test_codes_of_more_channels_than_a_program_takes_at_a_time(device, by_token):
    from quantsr.kernels.triton.launch import WIDEST  # Imports triton, which not every machine has.

    x, sizes = 3 * torch.randn(3, 2 * WIDEST + 77), (WIDEST + 7, WIDEST + 70)
    shape = (3, 2) if by_token else (2,)
    scale, zero = 0.1 + torch.rand(shape), torch.randint(-9, 9, shape).float()
    found = quantize(x.to(device), scale.to(device), zero.to(device), 8, sizes, backend="triton")
    assert_equal_inputs(found, quantize(x, scale, zero, 8, sizes, backend="reference"))
    found = quantize_tokens(x.to(device), 8, sizes, symmetric=False, backend="triton")
    assert_equal_inputs(found, quantize_tokens(x, 8, sizes, symmetric=False, backend="reference"))


def test_halves_round_to_even(device):
    x = torch.arange(-8.0, 8.0, 0.5).view(4, 8)
    one, none = torch.ones(1, device=device), torch.zeros(1, device=device)
    found = quantize(x.to(device), one, none, 8, (8,), backend="triton")
    assert torch.equal(found.codes[:, :8].cpu(), x.round().to(torch.int8))


def test_infinities_have_the_last_codes(device):
    """As 16-bit floats overflow to; on a GPU, a division by way of the inverse leaves them as no number."""
    x = torch.tensor([[-torch.inf, -3e38, 3e38, torch.inf]])
    scale, zero = torch.tensor([0.1]), torch.tensor([5.0])
    found = quantize(x.to(device), scale.to(device), zero.to(device), 8, (4,), backend="triton")
    assert found.codes[0, :4].tolist() == [-128, -128, 127, 127]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@BITS
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("ratio", [1.0, 0.9])
def test_codes_of_tokens_are_equal(device, layout, bits, symmetric, ratio):
    x = layout() + 0.5
    found = quantize_tokens(x.to(device), bits, (3, 66), symmetric, ratio, backend="triton")
    assert_equal_inputs(found, quantize_tokens(x, bits, (3, 66), symmetric, ratio, backend="reference"))
