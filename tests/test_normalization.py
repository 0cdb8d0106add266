"""Norms that share statistics over tiles see what they would see of the whole map."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from quantsr.normalization import SharedStatistics, by_tiles


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    """Brighter and of more contrast to the right: every tile has other statistics."""
    ramp = torch.linspace(0.1, 2, shape[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * ramp + 3 * ramp


def norm(channels: int = 8, groups: int = 4, dtype: torch.dtype = torch.float32) -> nn.GroupNorm:
    torch.manual_seed(0)
    layer = nn.GroupNorm(groups, channels)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-5)])
@pytest.mark.parametrize("shape", [(2, 8, 16, 48), (2, 8, 96)], ids=["map", "tokens"])
def test_one_norm_over_tiles_is_the_norm_of_the_whole(shape, dtype, tolerance):
    layer, x = norm(dtype=dtype), random_map(*shape).to(dtype)
    expected, statistics = layer(x), SharedStatistics(layer)
    parts = x.split(16, dim=-1)
    with statistics.measured():
        for part in parts:
            layer(part)
    with statistics.applied():
        found = torch.cat([layer(part) for part in parts], -1)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert not torch.allclose(torch.cat([layer(part) for part in parts], -1), expected, atol=0.1)


def test_large_mean_and_small_contrast():
    layer, x = norm(), random_map(1, 8, 8, 64) * 1e-3 + 10
    statistics = SharedStatistics(layer)
    with statistics.measured():
        for part in x.split(16, dim=-1):
            layer(part)
    with statistics.applied():
        torch.testing.assert_close(layer(x), layer.__class__.forward(layer, x), atol=1e-2, rtol=1e-2)


def test_a_network_is_as_it_was_afterwards():
    layer, x = norm(), random_map(1, 8, 4, 32)
    before, statistics = layer(x[..., :8]), SharedStatistics(layer)
    with pytest.raises(RuntimeError, match="of the test"), statistics.measured():
        raise RuntimeError("of the test")
    with statistics.measured():
        layer(x)
    with statistics.applied():
        assert not torch.equal(layer(x[..., :8]), before)
    assert torch.equal(layer(x[..., :8]), before)
    assert "forward" not in vars(layer)


def test_a_pointwise_network_by_tiles_is_as_without():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), norm(), nn.SiLU(), nn.Conv2d(8, 2, 1)).requires_grad_(False)
    x = random_map(2, 3, 16, 48)  # A multiple of the tile: measured without overlap, every pixel counts once.
    torch.testing.assert_close(by_tiles(network, network, x, 16, 8), network(x), atol=1e-5, rtol=1e-5)


def test_statistics_of_later_norms_come_near_those_of_the_whole():
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (norm(), nn.SiLU(), nn.Conv2d(8, 8, 1))]
    network, x = nn.Sequential(*layers).requires_grad_(False), random_map(1, 8, 64, 64)
    whole = network(x)
    alone = torch.cat([torch.cat([network(t) for t in row.split(16, -1)], -1) for row in x.split(16, -2)], -2)
    shared = (by_tiles(network, network, x, 16, 8) - whole).square().mean()
    assert shared < 0.02 * (alone - whole).square().mean()


def test_gradients_reach_the_input_and_the_weights():
    network = nn.Sequential(norm(), nn.Conv2d(8, 8, 1)).requires_grad_(True)
    x = random_map(1, 8, 16, 40).requires_grad_()
    by_tiles(network, network, x, 16, 8).square().sum().backward()
    assert x.grad.abs().amin((0, 1)).gt(0).all()
    assert all(parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("side", [1, 16])
def test_no_larger_than_a_tile(side):
    network, x = norm(), random_map(1, 8, side, 16)
    assert torch.equal(by_tiles(network, network, x, 16, 8), network(x))


def test_scales():
    up = nn.Sequential(norm(), nn.Upsample(scale_factor=2))
    assert by_tiles(up, up, random_map(1, 8, 20, 36), 16, 12, 2).shape == (1, 8, 40, 72)
    down = nn.Sequential(norm(), nn.AvgPool2d(4))
    assert by_tiles(down, down, random_map(1, 8, 20, 36), 16, 12, Fraction(1, 4)).shape == (1, 8, 5, 9)


@pytest.mark.parametrize("batch", [2, 5])
def test_tiles_in_batches_are_normalized_as_one_by_one(batch):
    """Two images of different contrast: each tile keeps the statistics of its own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), norm())
    x = random_map(2, 3, 40, 56) * torch.tensor([1, 0.2]).view(2, 1, 1, 1)
    one_by_one = by_tiles(network, network, x, 16, 8)
    torch.testing.assert_close(by_tiles(network, network, x, 16, 8, batch=batch), one_by_one, atol=1e-5, rtol=1e-5)


def test_statistics_are_measured_tile_by_tile_in_batches_too():
    network, x, sizes = norm(), random_map(2, 8, 32, 32), []
    by_tiles(network, lambda tile: sizes.append(len(tile)) or network(tile), x, 16, 16, batch=3)
    assert sizes == [2, 2, 2, 2, 6, 2]
