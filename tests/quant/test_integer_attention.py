"""The integer form of attention computes what the simulation computes, whatever bounds, scales and zeros are."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.integer_attention import IntegerAttention, bounds, obstacle
from quantsr.quant.recipe import AttentionRecipe
from quantsr.quant.spec import AffineSpec

SHAPES = {  # of queries, of keys and values
    "self": ((2, 2, 12, 8), (2, 2, 12, 8)),
    "cross": ((1, 2, 20, 40), (1, 2, 7, 40)),
    "one_head": ((1, 1, 16, 80), (1, 1, 16, 80)),
}
EVERY_SHAPE = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
RECIPES = {
    "minmax": ({}, None),
    "symmetric": ({"symmetric": True}, None),
    "learned": ({"range": "learned"}, None),
    "step": ({"range": "step"}, None),
    "clipped": ({"clipping": True}, None),
    "smoothing": ({"range": "learned"}, 0.3),
    "released": ({"range": "learned", "as_released": True}, 0.3),
}
EVERY_RECIPE = pytest.mark.parametrize(("options", "smoothing"), RECIPES.values(), ids=RECIPES.keys())


def factors(shapes) -> list[Tensor]:
    """Queries and keys whose probabilities are far from even, and values of another mean."""
    q, k, v = (torch.randn(shape) for shape in (shapes[0], shapes[1], shapes[1]))
    return [q + 0.5, 2 * k - 0.3, v + 0.7]


def calibrated(spec: AffineSpec, inputs: list[Tensor], smoothing: float | None = None) -> QuantizedAttention:
    attention = QuantizedAttention(AttentionRecipe(spec, smoothing=smoothing), inputs[0].shape[-1])
    for observation in ("observe_smoothing", "observe_ranges"):
        attention.mode = observation
        attention.attend(*inputs)
        for module in attention.modules():
            if getattr(module, "pending", None) is not None:
                module.absorb(module.pending)
    attention.mode = "quantized"
    return attention.requires_grad_(False).eval()


def assert_computes_the_same(simulated: QuantizedAttention, inputs: list[Tensor], backend: str = "auto") -> None:
    """Equal up to float rounding, but where the last bit of a probability decides between two codes."""
    expected, found = simulated.attend(*inputs), IntegerAttention(simulated, backend).attend(*inputs)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    difference = (found - expected).abs()
    key_scale = simulated.key_scale
    largest = inputs[2] if key_scale is None else inputs[2] / key_scale(inputs[2].shape[-2])[:, None]
    step = float(bounds(simulated)[0][3]) * float(largest.abs().max())
    assert difference.max() <= 1.01 * step + 1e-5
    assert (difference > 1e-5 * float(expected.abs().max())).float().mean() < 0.05


@EVERY_SHAPE
@EVERY_RECIPE
@pytest.mark.parametrize("bits", [8, 4])
def test_recipes(shapes, options, smoothing, bits):
    inputs = factors(shapes)
    assert_computes_the_same(calibrated(AffineSpec(bits, **options), inputs, smoothing), inputs)


@pytest.mark.parametrize("bits", range(2, 9))
def test_widths(bits):
    inputs = factors(SHAPES["self"])
    assert_computes_the_same(calibrated(AffineSpec(bits), inputs), inputs)


@EVERY_RECIPE
def test_in_triton(device, options, smoothing):
    inputs = [x.to(device) for x in factors(SHAPES["cross"])]
    assert_computes_the_same(calibrated(AffineSpec(8, **options), inputs, smoothing), inputs, "triton")


def test_another_number_of_keys():
    """Scales of keys are resampled, as in the simulation."""
    attention = calibrated(AffineSpec(8), factors(SHAPES["self"]), 0.3)
    assert_computes_the_same(attention, factors(((1, 2, 30, 8), (1, 2, 25, 8))))


@pytest.mark.parametrize("lower", [0.05, -0.4, 0.6])
def test_probabilities_whose_range_begins_elsewhere(lower):
    """A learned bound may leave 0: its zero point is then no code."""
    inputs = factors(SHAPES["self"])
    attention = calibrated(AffineSpec(8, range="learned"), inputs)
    attention.probability.lower.fill_(lower)
    assert_computes_the_same(attention, inputs)


def test_inside_of_diffusers_module():
    module = Attention(16, heads=2, dim_head=8).requires_grad_(False).eval()
    x = torch.randn(2, 12, 16)
    q, k, v = (layer(x).view(2, 12, 2, 8).transpose(1, 2) for layer in (module.to_q, module.to_k, module.to_v))
    simulated = calibrated(AffineSpec(8), [q, k, v])
    module.set_processor(simulated)
    expected = module(x)
    module.set_processor(IntegerAttention(simulated))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0.01 * float(expected.abs().max()))


def test_scales_stay_in_float32():
    inputs = factors(SHAPES["self"])
    integer = IntegerAttention(calibrated(AffineSpec(8), inputs, 0.3))
    moved = deepcopy(integer).to(torch.bfloat16)
    assert all(torch.equal(moved.state_dict()[name], value) for name, value in integer.state_dict().items())
    assert moved.attend(*(x.bfloat16() for x in inputs)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (AffineSpec(16), "its factors have 16 bits, and int8 codes have at most 8"),
        (AffineSpec(8, granularity="token", range="dynamic"), "bounds of their own for every token"),
    ],
    ids=["bits", "tokens"],
)
def test_recipes_without_an_integer_form_are_refused(spec, reason):
    attention = calibrated(spec, factors(SHAPES["self"]))
    assert reason in obstacle(attention)
    with pytest.raises(ValueError, match=f"cannot be computed with integers: .*{reason}"):
        IntegerAttention(attention)


def test_values_that_are_never_near_0_are_refused():
    q, k, v = factors(SHAPES["self"])
    assert obstacle(calibrated(AffineSpec(8), [q, k, v + 100])) == "a range of queries, keys or values does not hold 0"


def test_probabilities_that_would_overflow_are_refused():
    attention = calibrated(AffineSpec(8, range="learned"), factors(SHAPES["self"]))
    attention.probability.lower.zero_()
    attention.probability.upper.fill_(5e-5)
    assert obstacle(attention) == "its probabilities are so small that int32 may not hold sums of their codes"
