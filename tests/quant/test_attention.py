"""Quantized attention products inside diffusers' own attention module."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from quantsr.quant import attention
from quantsr.quant.attention import PairScale, QuantizedAttention, resample
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.recipe import AttentionRecipe
from quantsr.quant.spec import AffineSpec

KINDS = {  # options of diffusers' module, shape of its input, shape of the context
    "self": ({}, (2, 12, 16), None),
    "cross": ({"cross_attention_dim": 10}, (2, 12, 16), (2, 7, 10)),
    "self_4d_with_norm_and_residual": (
        {"norm_num_groups": 4, "residual_connection": True, "bias": True, "rescale_output_factor": 1.5},
        (2, 16, 4, 3),
        None,
    ),
    "cross_4d_with_norm": ({"norm_num_groups": 4, "cross_attention_dim": 10}, (2, 16, 3, 5), (2, 7, 10)),
    "one_head_over_all_channels": ({"heads": 1, "dim_head": 16}, (1, 20, 16), None),
}
RECIPES = {
    "minmax": AttentionRecipe(AffineSpec(16)),
    "learned": AttentionRecipe(AffineSpec(16, range="learned")),
    "smoothing": AttentionRecipe(AffineSpec(16, range="learned"), smoothing=0.3),
    "tokens": AttentionRecipe(AffineSpec(16, granularity="token", range="dynamic")),
    "smoothing_and_tokens": AttentionRecipe(AffineSpec(16, granularity="token", range="dynamic"), smoothing=0.3),
    "symmetric": AttentionRecipe(AffineSpec(16, symmetric=True)),
}
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def original_and_inputs(request) -> tuple[Attention, list[Tensor]]:
    options, shape, context = request.param
    options = {"query_dim": 16, "heads": 2, "dim_head": 8, **options}
    module = Attention(**options, processor=AttnProcessor2_0()).requires_grad_(False).eval()
    return module, [torch.randn(s) for s in (shape, context) if s is not None]


@pytest.fixture
def self_attention() -> tuple[Attention, Tensor]:
    return Attention(16, heads=2, dim_head=8).requires_grad_(False).eval(), torch.randn(2, 12, 16)


def quantized(module: Attention, recipe: AttentionRecipe) -> QuantizedAttention:
    """Give the module a quantized processor; returns it."""
    processor = QuantizedAttention(recipe, module.to_q.weight.shape[0] // module.heads)
    module.set_processor(processor)
    return processor


@EVERY_RECIPE
def test_at_16_bits_it_computes_what_diffusers_does(original_and_inputs, calibrate, recipe):
    module, inputs = original_and_inputs
    expected = module(*inputs)
    quantized(module, recipe)
    y = calibrate(module, *inputs)(*inputs)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("observation", ["full_precision", "observe_smoothing", "observe_ranges"])
def test_other_modes_compute_exactly_what_diffusers_does(original_and_inputs, calibrate, observation):
    module, inputs = original_and_inputs
    expected = module(*inputs)
    quantized(module, RECIPES["smoothing"])
    calibrate(module, *inputs)
    with mode(module, observation):
        assert torch.equal(module(*inputs), expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_quantize_both_products(self_attention, calibrate, bits):
    module, x = self_attention
    processor = quantized(module, AttentionRecipe(AffineSpec(bits)))
    seen = {}
    for name in ("query", "key", "probability", "value"):
        getattr(processor, name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
    calibrate(module, x)(x)
    assert len(seen) == 4
    assert all(2 < len(y.unique()) <= 2**bits for y in seen.values())


def test_the_arguments_that_diffusers_looks_for_are_taken(self_attention, caplog):
    """diffusers drops, with a warning, what it does not find in the processor's signature."""
    module, x = self_attention
    quantized(module, RECIPES["minmax"])
    with mode(module, "full_precision"), caplog.at_level("WARNING"):
        module(x, temb=None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"attention_mask": torch.zeros(2, 12)}),
        ({"qk_norm": "layer_norm"}, {}),
        ({"cross_attention_norm": "layer_norm", "cross_attention_dim": 32}, {}),
        ({"spatial_norm_dim": 4}, {}),
    ],
    ids=["mask", "query_norm", "context_norm", "spatial_norm"],
)
def test_what_it_does_not_compute_is_refused(options, arguments):
    module = Attention(32, heads=2, dim_head=16, **options)
    quantized(module, RECIPES["minmax"])
    with pytest.raises(ValueError, match="quantized attention takes no mask and no normalization"):
        module(torch.randn(2, 12, 32), **arguments)


# Scales of the two products.


def test_initial_scales_are_ratios_of_magnitudes(self_attention):
    module, _ = self_attention
    processor = quantized(module, RECIPES["smoothing"])
    q, k, v = torch.randn(3, 2, 2, 12, 8).unbind()
    with mode(module, "observe_smoothing"):
        processor.attend(q, k, v)
    settle(module)
    p = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    channels = (k.abs().amax((0, 1, 2)) / q.abs().amax((0, 1, 2))) ** 0.3
    keys = (v.abs().amax((0, 1, 3)) / p.amax((0, 1, 2))) ** 0.3
    torch.testing.assert_close(processor.channel_scale.scale.detach(), channels)
    torch.testing.assert_close(processor.key_scale.scale.detach(), keys)


@pytest.mark.parametrize("length", [1, 5, 12, 40])
def test_other_numbers_of_keys_are_computed_as_exactly(self_attention, calibrate, length):
    module, x = self_attention
    other = torch.randn(2, length, 16)
    expected = module(other)
    quantized(module, RECIPES["smoothing_and_tokens"])
    torch.testing.assert_close(calibrate(module, x)(other), expected, rtol=0, atol=1e-3)


def test_scales_are_averaged_over_batches_of_any_length(self_attention, calibrate):
    module, x = self_attention
    processor = quantized(module, RECIPES["smoothing"])
    for length in (12, 9, 20):
        calibrate(module, torch.randn(2, length, 16))
        assert processor.key_scale.scale.shape == (12,)
        assert processor.calibrated
    assert module(x).isfinite().all()


@pytest.mark.parametrize(("size", "expected"), [(3, [1, 2, 3]), (6, [1, 1.25, 1.75, 2.25, 2.75, 3]), (1, [2])])
def test_resampling_is_linear_and_leaves_equal_lengths_alone(size, expected):
    assert resample(torch.tensor([1.0, 2.0, 3.0]), size).tolist() == expected


def test_a_scale_gets_its_length_once_and_keeps_whether_it_trains():
    scale = PairScale(0.3).requires_grad_(False)
    assert not scale.calibrated
    with torch.inference_mode():
        scale.allocate(5)
    parameter = scale.scale
    scale.allocate(7)
    assert scale.scale is parameter
    assert parameter.shape == (5,)
    assert not parameter.requires_grad
    assert not parameter.is_inference()


@EVERY_RECIPE
def test_the_state_makes_an_equal_processor(self_attention, calibrate, recipe):
    module, x = self_attention
    state = quantized(module, recipe).state_dict
    y = calibrate(module, x)(x)
    quantized(module, recipe).load_state_dict(state())
    assert module.processor.calibrated
    assert torch.equal(module(x), y)


# Chunks: all probabilities at once are never held.


def run(module: Attention, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and gradients to the input and all that trains."""
    learners = [inputs[0].requires_grad_(), *module.processor.requires_grad_(True).parameters()]
    y = module(*inputs)
    return y.detach(), *torch.autograd.grad(y, learners, torch.linspace(-1, 1, y.numel()).reshape(y.shape))


@pytest.mark.parametrize("chunk", [1, 100, 150], ids=["query_by_query", "some", "uneven"])
@EVERY_RECIPE
def test_chunks_change_neither_values_nor_gradients(original_and_inputs, calibrate, monkeypatch, recipe, chunk):
    module, inputs = original_and_inputs
    quantized(module, recipe)
    whole = run(calibrate(module, *inputs), inputs)
    monkeypatch.setattr(attention, "CHUNK", chunk)
    for mine, expected in zip(run(module, inputs), whole, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@EVERY_RECIPE
def test_chunks_do_not_change_calibration(original_and_inputs, calibrate, monkeypatch, recipe):
    module, inputs = original_and_inputs
    quantized(module, recipe)
    whole = calibrate(module, *inputs).processor.state_dict()
    quantized(module, recipe)
    monkeypatch.setattr(attention, "CHUNK", 50)
    for name, tensor in calibrate(module, *inputs).processor.state_dict().items():
        torch.testing.assert_close(tensor, whole[name])


@pytest.mark.parametrize("recipe", [RECIPES["learned"], RECIPES["smoothing"]], ids=["learned", "smoothing"])
def test_gradients_are_those_of_plain_autograd(self_attention, calibrate, monkeypatch, recipe):
    module, x = self_attention
    quantized(module, recipe)
    checkpointed = run(calibrate(module, x), [x])
    monkeypatch.setattr(attention, "checkpoint", lambda function, part, use_reentrant: function(part))
    for mine, expected in zip(checkpointed, run(module, [x]), strict=True):
        torch.testing.assert_close(mine, expected)


def test_no_probabilities_are_kept_for_the_backward_pass(calibrate, saved_bytes):
    module = Attention(8, heads=1, dim_head=8).requires_grad_(False)
    x = torch.randn(1, 400, 8)
    quantized(module, RECIPES["smoothing"])
    calibrate(module, x).processor.requires_grad_(True)
    assert saved_bytes(lambda: module(x)) < 400 * 400


def test_autocast_gives_the_type_of_diffusers(original_and_inputs, calibrate):
    module, inputs = original_and_inputs
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(*inputs)
    quantized(module, RECIPES["smoothing"])
    calibrate(module, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(*inputs)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_it_replaces_a_processor_and_moves_with_its_module(self_attention):
    module, _ = self_attention
    processor = quantized(module, RECIPES["smoothing"])
    assert dict(module.named_modules())["processor"] is processor
    assert isinstance(processor, nn.Module)
    assert module.to(torch.float64).processor.channel_scale.scale.dtype == torch.float64
