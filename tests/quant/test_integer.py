"""The integer form computes what the folded form simulates, for every recipe, width and kind of layer."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer, fold
from quantsr.quant.integer import IntegerLayer, Simulated, integers
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import AttentionRecipe
from quantsr.quant.spec import AffineSpec
from tests.quant.layers import DYNAMIC, EVERY_FEATURE, FEATURES, LEARNED, ROWS, TOKENS, make, recipe

SYMMETRIC = {**ROWS, "symmetric": True}
METHODS = {
    "minmax": {},
    "lsq": {"kind": "step", "weight": SYMMETRIC},
    "efficientdm": {"kind": "step", "update_rank": 3},
    "qdiffusion": {"act": {"range": "step"}, "cut": 3},
    "passionsr_vae": {"kind": "learned", "smoothing": 0.3, "offset": True, "quantize_bias": True},
    "passionsr_unet": {"kind": "learned", "smoothing": 0.3, "offset": True, "channel_split": True},
    "qartsr": {"kind": "learned", "smoothing": 0.5, "rank": 3, "update_rank": 2},
    "quantvsr": {"act": DYNAMIC, "rotation": True, "rank": 2, "channel_split": True, "bias_alignment": True},
    "quarot": {"weight": SYMMETRIC, "act": {**TOKENS, "symmetric": True, "ratio": 0.9}, "rotation": True},
    "svdquant": {
        "weight": SYMMETRIC,
        "act": TOKENS,
        "smoothing": 1.0,
        "smoothing_weight": 0.0,
        "rank": 2,
        "group_size": 4,
    },
    "viditq": {"act": TOKENS, "smoothing": 0.5, "smoothing_weight": 0.5, "rotation": True},
    "released_quantvsr": {
        "weight": {**ROWS, "as_released": True},
        "act": {**DYNAMIC, "as_released": True},
        "rotation": True,
        "rank": 2,
        "channel_split": True,
    },
}
"""The recipes of the ten methods (and of the students that QuantVSR's released code made), at few channels."""
EVERY_METHOD = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())


class Operations(TorchDispatchMode):
    """Notes which operations are called, and where the tensors begin that are given another type."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.converted = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        if func is torch.ops.aten._to_copy.default:
            self.converted.add(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


def folded_layer(module, x, options, calibrate, **more) -> FoldedLayer:
    layer = make(module, x, options, calibrate, **more)
    if layer.update is not None:
        nn.init.normal_(layer.update.F1, std=0.1)
    return FoldedLayer.of(layer)


def assert_computes_the_same(folded: FoldedLayer, x: torch.Tensor) -> None:
    """Up to float rounding, relative to the largest output."""
    expected, y = folded(x), IntegerLayer(folded)(x)
    assert y.dtype == expected.dtype and y.is_contiguous() == expected.is_contiguous()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@EVERY_METHOD
def test_methods(module_and_input, calibrate, options):
    module, x = module_and_input
    assert_computes_the_same(folded_layer(module, x, options, calibrate), x)


@EVERY_FEATURE
def test_features(module_and_input, calibrate, options):
    module, x = module_and_input
    assert_computes_the_same(folded_layer(module, x, options, calibrate), x)


@pytest.mark.parametrize("options", LEARNED.values(), ids=LEARNED.keys())
def test_learned_ranges(image_layer, calibrate, options):
    module, x = image_layer
    assert_computes_the_same(folded_layer(module, x, options, calibrate), x)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", [{}, METHODS["quarot"], METHODS["quantvsr"]], ids=["minmax", "quarot", "quantvsr"])
def test_widths(image_layer, calibrate, bits, options):
    module, x = image_layer
    folded = folded_layer(module, x, options, calibrate, bits=bits)
    codes = IntegerLayer(folded).codes
    assert codes.dtype == (torch.uint8 if bits <= 4 else torch.int8)
    assert codes.shape == (6, 9, 64 * len(folded.recipe.parts(8)) // (2 if bits <= 4 else 1))
    assert_computes_the_same(folded, x)


@pytest.mark.parametrize("shift", [40.0, -3000.0, 1e5])
@pytest.mark.parametrize(
    "options", [{}, {"act": DYNAMIC}, {"act": TOKENS}, {"kind": "learned", "channel_split": True}], ids=str
)
def test_a_range_without_zero_has_its_zero_point_outside_of_the_codes(image_layer, calibrate, options, shift):
    """Padding is of values 0, which no code stands for then; and rows of weights may be all positive."""
    module, x = image_layer
    module.weight[0] += 30
    folded = folded_layer(module, x + shift, options, calibrate, bits=8)
    bounds = folded.input_quantizer.part_qparams(x + shift)[1]
    assert (bounds < 0).any() or (bounds > 255).any()
    assert_computes_the_same(folded, x + shift)


def test_a_constant_input(image_layer, calibrate):
    module, x = image_layer
    x = torch.full_like(x, 0.7)
    assert_computes_the_same(folded_layer(module, x, {"act": DYNAMIC}, calibrate), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [METHODS["qartsr"], METHODS["quarot"]], ids=["qartsr", "quarot"])
def test_16_bits(image_layer, calibrate, options, dtype):
    """The result has the type of the input; what is rounded to it differs by no more than that rounding."""
    module, x = image_layer
    folded = folded_layer(module, x, options, calibrate, bits=8)
    x = x.to(dtype)
    y, expected = IntegerLayer(folded)(x), folded(x)
    assert y.dtype == dtype
    bound = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(y, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("options", [METHODS["passionsr_unet"], METHODS["quantvsr"]], ids=["passionsr", "quantvsr"])
def test_its_numbers_are_not_rounded_with_the_model_around_it(image_layer, calibrate, options):
    module, x = image_layer
    layer = IntegerLayer(folded_layer(module, x, options, calibrate, bits=8))
    moved = copy.deepcopy(layer).to(torch.bfloat16)
    assert all(torch.equal(moved.state_dict()[name], value) for name, value in layer.state_dict().items())


def test_channels_stay_where_they_are_in_memory(image_layer, calibrate):
    module, x = image_layer
    layer = IntegerLayer(folded_layer(module, x, {}, calibrate))
    assert layer(x).is_contiguous()
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", ["passionsr_vae", "qartsr", "svdquant"])
def test_what_is_constant_is_computed_once(method, calibrate):
    """Launches of kernels cost as much as small layers do."""
    module, x = nn.Linear(12, 6).requires_grad_(False), torch.randn(2, 5, 12)
    layer = IntegerLayer(folded_layer(module, x, METHODS[method], calibrate))
    assert layer.offset_response is None
    x = x.bfloat16()
    layer(x)
    with Operations() as operations:
        layer(x)
    stored = {t.data_ptr() for name, t in layer.named_buffers() if name in ("slope", "L1", "L2")}
    assert "aten::reciprocal" not in operations.names and not stored & operations.converted


def test_a_branch_in_one_type_and_another(image_layer, calibrate):
    module, x = image_layer
    folded = folded_layer(module, x, METHODS["qartsr"], calibrate)
    layer = IntegerLayer(folded)
    layer(x.bfloat16())
    assert torch.equal(layer(x), IntegerLayer(folded)(x))


def test_autocast_does_not_touch_integers(image_layer, calibrate):
    module, x = image_layer
    layer = IntegerLayer(folded_layer(module, x, {}, calibrate, bits=8))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert torch.equal(y, layer(x))


def test_the_state_makes_an_equal_layer(image_layer, calibrate):
    module, x = image_layer
    layer = IntegerLayer(folded_layer(module, x, FEATURES["all_at_once"], calibrate))
    other = nn.Conv2d(8, 6, 3, padding=1).requires_grad_(False)
    copy = IntegerLayer(folded_layer(other, x, FEATURES["all_at_once"], calibrate))
    assert not torch.equal(copy(x), layer(x))
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy(x), layer(x))


def test_activations_of_16_bits_are_refused(image_layer, calibrate):
    module, x = image_layer
    folded = folded_layer(module, x, {"act": {"bits": 16}}, calibrate)
    with pytest.raises(ValueError, match=r"cannot be computed with integers: its activations have 16 bits"):
        IntegerLayer(folded)


def test_halves_of_the_tokens_are_refused(calibrate):
    module, x = nn.Linear(12, 6).requires_grad_(False), torch.randn(2, 5, 12)
    folded = folded_layer(module, x, {"channel_split": True, "token_split": True}, calibrate)
    with pytest.raises(ValueError, match="token_split"):
        IntegerLayer(folded)


def test_sums_too_long_for_int32_are_refused(calibrate):
    module, x = nn.Linear(2**17, 1).requires_grad_(False), torch.randn(2, 2**17)
    folded = folded_layer(module, x, {}, calibrate)
    with pytest.raises(ValueError, match="sums 131072 products"):
        IntegerLayer(folded)


def test_a_model_says_what_it_still_simulates(calibrate):
    """Layers that can be integers are; of the rest there is a list."""
    layers = [
        QuantizedLayer(nn.Linear(8, 8).requires_grad_(False), recipe(**options))
        for options in ({}, {"act": {"bits": 16}}, {"act": TOKENS})
    ]
    x = torch.randn(4, 8)
    model = fold(calibrate(nn.Sequential(*layers), x))
    model.append(nn.Sequential(QuantizedAttention(AttentionRecipe(AffineSpec(16)), 4)))
    expected = model[2](model[1](model[0](x)))
    assert integers(model) == [
        Simulated("1", "its activations have 16 bits, and int8 codes have at most 8"),
        Simulated("3.0", "its factors have 16 bits, and int8 codes have at most 8"),
    ]
    assert [type(m) for m in model[:3]] == [IntegerLayer, FoldedLayer, IntegerLayer]
    torch.testing.assert_close(model[2](model[1](model[0](x))), expected)
