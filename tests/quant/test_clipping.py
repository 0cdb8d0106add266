"""Bounds of least squared error: never worse than the extremes, tight where there are outliers."""

import pytest
import torch

from quantsr.quant.affine import fake_quantize, qparams
from quantsr.quant.clipping import SAMPLES, clipped_extremes
from quantsr.quant.parts import extremes
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.spec import AffineSpec


def error(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> float:
    scale, zero_point = qparams(lower, upper, 0, 2**bits - 1)
    return (fake_quantize(x, scale, zero_point, 0, 2**bits - 1) - x).square().mean().item()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


DRAWS = {"normal": torch.randn, "half": lambda *shape: torch.randn(*shape).abs(), "uniform": torch.rand}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_error_is_at_most_that_of_the_extremes(draw, bits):
    values = draw(1, 4000)
    clipped = clipped_extremes(values, "tensor", 1, (4000,), 0, 2**bits - 1, symmetric=False)
    # Bounds that are nearly the extremes may have the same error but for rounding.
    plain = error(values, *extremes(values, "tensor", 1, (4000,)), bits)
    assert error(values, *clipped, bits) <= plain * (1 + 1e-6)


def test_normal_values_at_2_bits_are_clipped_near_the_known_optimum():
    """Uniform quantization to 4 levels of a unit normal distribution is best with a step of 0.9957 (Max, 1960)."""
    lower, upper = clipped_extremes(torch.randn(1, 100_000), "tensor", 1, (100_000,), 0, 3, symmetric=False)
    assert ((upper - lower) / 3).item() == pytest.approx(1, abs=0.12)


def test_each_bound_moves_alone():
    """Many values at the lower extreme, one far outlier at the upper."""
    values = torch.cat([torch.full((2000,), -1.0), torch.rand(2000), torch.tensor([8.0])])[None]
    lower, upper = clipped_extremes(values, "tensor", 1, (4001,), 0, 15, symmetric=False)
    assert lower.item() < -0.75 and upper.item() < 0.85 * 8


def test_every_row_and_part_has_bounds_of_its_own():
    weight = torch.randn(6, 10, 3, 3) * torch.arange(1, 7)[:, None, None, None]
    weight[:, 4:] *= 10
    lower, upper = clipped_extremes(weight, "channel", 1, (4, 6), 0, 3, symmetric=False)
    assert lower.shape == upper.shape == (6, 2)
    for row in range(6):
        for part, channels in enumerate((slice(0, 4), slice(4, 10))):
            alone = clipped_extremes(weight[row : row + 1, channels], "channel", 1, (channels.stop,), 0, 3, False)
            assert (lower[row, part], upper[row, part]) == (alone[0][0, 0], alone[1][0, 0])


def test_a_batch_has_the_outermost_bounds_of_its_images():
    """So that two devices find what one finds."""
    batch = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 5.0, 2.0])[:, None, None, None]
    alone = [clipped_extremes(image[None], "tensor", 1, (4,), 0, 3, False) for image in batch]
    lower, upper = clipped_extremes(batch, "tensor", 1, (4,), 0, 3, False)
    assert lower.item() == min(low.item() for low, _ in alone)
    assert upper.item() == max(high.item() for _, high in alone)


def test_large_activations_are_searched_by_a_sample():
    x = torch.randn(1, 8, 2 * SAMPLES)
    lower, upper = clipped_extremes(x, "tensor", 1, (8,), 0, 15, symmetric=False)
    whole = clipped_extremes(x[..., :1000], "tensor", 1, (8,), 0, 15, symmetric=False)
    assert (lower.item(), upper.item()) == pytest.approx([t.item() for t in whole], rel=0.25)


@pytest.mark.parametrize("shape", [(1, 1024, 320), (1, 256, 1280), (1, 320, 32, 32)], ids=str)
def test_the_sample_is_of_all_channels(shape):
    """Tokens and maps whose channels differ in size: as good as a search through every value, to a few percent."""
    axis = 2 if len(shape) == 3 else 1
    sizes = torch.logspace(-1, 1, shape[axis])[torch.randperm(shape[axis])]
    x = torch.randn(shape) * sizes.view([-1 if i == axis else 1 for i in range(len(shape))])
    lower, upper = clipped_extremes(x, "tensor", axis, (shape[axis],), 0, 15, symmetric=False)
    whole = clipped_extremes(x.flatten()[None], "channel", 1, (x.numel(),), 0, 15, symmetric=False)
    assert error(x, lower, upper, 4) < 1.05 * error(x, *(t[0] for t in whole), 4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_quantizer_clips_on_request_only(symmetric):
    x = torch.cat([torch.randn(4000), torch.tensor([20.0])])[None]
    ranges = []
    for clipping in (True, False):
        quantizer = Quantizer(AffineSpec(2, symmetric=symmetric, clipping=clipping), (4001,), 1)
        quantizer.record(x)
        quantizer.absorb(quantizer.pending)
        ranges.append((quantizer.upper - quantizer.lower).item())
    assert ranges[0] < 0.5 * ranges[1]
