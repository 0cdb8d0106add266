"""Both products of attention: what the simulation computes, whatever bounds and zero points are."""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from torch import Tensor

from quantsr.deploy.openvino.attention import SIGNED, UNSIGNED, attention_output, factor, why_not
from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.networks import compile_model
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe
from quantsr.quant.spec import AffineSpec

BATCH, HEADS, QUERIES, KEYS, CHANNELS = 1, 2, 24, 20, 16
BOUNDS = {
    "around 0": (-1.0, 1.0),
    "mostly below": (-1.6, 0.9),
    "mostly above": (-0.3, 1.4),
    "above": (0.0, 1.2),
}


def factors(seed: int = 0, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, heads, n, CHANNELS) for n in (QUERIES, KEYS, KEYS)]
    return tuple(torch.randn(shape, generator=generator) + 0.3 for shape in shapes)


def calibrated(spec: AffineSpec, bounds: tuple[float, float], p_bounds=(0.0, 0.6), smoothing=None):
    attention = QuantizedAttention(AttentionRecipe(spec, smoothing=smoothing), CHANNELS)
    for quantizer in (attention.query, attention.key, attention.value):
        quantizer.set_bounds(*(torch.tensor([3 * bound]) for bound in bounds))
    attention.probability.set_bounds(*(torch.tensor([bound]) for bound in p_bounds))
    return attention


def exported(attention: QuantizedAttention, *inputs: Tensor, constants: int = 0) -> Tensor:
    """What OpenVINO computes; the last ``constants`` of the inputs are part of the model."""
    given = inputs[: len(inputs) - constants]
    parameters = [op.parameter(list(x.shape), np.float32) for x in given]
    known = [op.constant(x.numpy()) for x in inputs[len(given) :]]
    q, k, v, *scale = (node.output(0) for node in [*parameters, *known])
    model = ov.Model([attention_output(attention, q, k, v, scale[0] if scale else None)], parameters)
    compiled = compile_model(model, [x.shape for x in given], "f32")
    return torch.from_numpy(compiled([x.numpy() for x in given])[0])


def smallest_move(attention: QuantizedAttention) -> float:
    """What a probability that is rounded the other way moves its row by, at a value of 10 codes."""
    steps = [quantizer.qparams(torch.zeros(1, 1))[0] for quantizer in (attention.value, attention.probability)]
    return 10 * float(steps[0].detach() * steps[1].detach())


def assert_same(found: Tensor, expected: Tensor, step: float) -> None:
    """A probability at the middle of two codes may be rounded either way."""
    error = (found - expected).abs()
    assert error.mean() < 0.05 * step and error.max() < 3 * step


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("kind", ["affine", "symmetric", "learned"])
@pytest.mark.parametrize("heads", [1, HEADS], ids=lambda heads: f"{heads} heads")
def test_the_products_are_those_of_the_simulation(bits, bounds, kind, heads):
    spec = AffineSpec(bits, symmetric=kind == "symmetric", range="learned" if kind == "learned" else "minmax")
    attention, inputs = calibrated(spec, bounds), factors(heads=heads)
    with torch.no_grad():
        expected = attention.products(*inputs, None)
    assert_same(exported(attention, *inputs), expected, smallest_move(attention))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("heads", [1, HEADS], ids=lambda heads: f"{heads} heads")
def test_keys_and_values_may_be_known(bits, bounds, heads):
    """As those of a prompt are."""
    attention, inputs = calibrated(AffineSpec(bits), bounds), factors(heads=heads)
    with torch.no_grad():
        expected = attention.products(*inputs, None)
    assert_same(exported(attention, *inputs, constants=2), expected, smallest_move(attention))


@pytest.mark.parametrize("p_bounds", [(0.0, 0.6), (-0.05, 0.6), (0.01, 0.6)])
def test_probabilities_may_have_a_zero_point_and_a_scale_per_key(p_bounds):
    """As PassionSR learns them."""
    attention = calibrated(AffineSpec(8, range="learned"), (-1.6, 0.9), p_bounds, smoothing=0.3)
    key_scale = torch.linspace(0.5, 1.5, KEYS)
    with torch.no_grad():
        expected = attention.products(*factors(), key_scale)
    assert_same(exported(attention, *factors(), key_scale), expected, smallest_move(attention))


def test_a_scale_per_token_stays_in_floating_point():
    spec = AffineSpec(6, range="dynamic", granularity="token")
    attention = QuantizedAttention(AttentionRecipe(spec), CHANNELS)
    assert why_not(attention) == "attention with a scale per token"
    with torch.no_grad():
        expected = attention.products(*factors(), None)
    assert_same(exported(attention, *factors()), expected, 0.02)


@pytest.mark.parametrize("lowest", [SIGNED, UNSIGNED])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_a_factor_is_what_its_quantizer_gives_less_an_offset(bits, bounds, lowest):
    quantizer = Quantizer(AffineSpec(bits), (CHANNELS,), -1)
    quantizer.set_bounds(*(torch.tensor([bound]) for bound in bounds))
    x = 2 * torch.randn(50, CHANNELS, generator=torch.Generator().manual_seed(1))
    parameter = op.parameter(list(x.shape), np.float32)
    found = factor(parameter.output(0), quantizer, lowest)
    compiled = core().compile_model(ov.Model([found.values], [parameter]), "CPU")
    integers = torch.from_numpy(compiled([x.numpy()])[0]) / found.step
    assert (integers - integers.round()).abs().max() < 1e-3
    assert integers.min() > lowest - 0.5 and integers.max() < lowest + 255.5
    with torch.no_grad():
        expected = quantizer(x)
    assert ((integers * found.step - found.offset - expected).abs() > found.step / 2).float().mean() < 1e-3
    assert found.offset == 0 or bits == 8 or lowest == UNSIGNED  # Below 8 bits signed codes are counted from 0.
