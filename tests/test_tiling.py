"""Tiles cover the map, and blending them leaves no trace where the function itself does not depend on the tile."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.errors import UserError
from quantsr.tiling import gaussian, scattered, tile_starts, tiled

KINDS = ["gaussian", "uniform"]


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Counted:
    """A function that notes the sizes of the tiles it was given."""

    def __init__(self, function=lambda x: x):
        self.function, self.sizes = function, []

    def __call__(self, *tiles: Tensor) -> Tensor:
        self.sizes.append(tuple(tiles[0].shape[-2:]))
        return self.function(*tiles)


class TestStarts:
    @pytest.mark.parametrize("size, stride", [(64, 32), (960, 750), (7, 7), (5, 1)])
    @pytest.mark.parametrize("beyond", [1, 2, 31, 32, 33, 750, 2000])
    def test_tiles_cover_the_axis_and_end_with_it(self, size, stride, beyond):
        starts = tile_starts(size + beyond, size, stride)
        covered = {position for start in starts for position in range(start, start + size)}
        assert covered == set(range(size + beyond))
        assert starts == sorted(set(starts))
        assert all(later - earlier <= stride for earlier, later in pairwise(starts))

    @pytest.mark.parametrize("length", [1, 63, 64])
    def test_one_tile_where_it_fits(self, length):
        assert tile_starts(length, 64, 32) == [0]

    @pytest.mark.parametrize("length, expected", [(65, [0, 1]), (96, [0, 32]), (100, [0, 32, 36]), (128, [0, 32, 64])])
    def test_no_tile_more_than_needed(self, length, expected):
        assert tile_starts(length, 64, 32) == expected

    @pytest.mark.parametrize("size, stride", [(64, 0), (64, -1), (64, 65), (0, 0), (-3, -3)])
    def test_gaps_are_refused(self, size, stride):
        with pytest.raises(UserError, match="gaps"):
            tile_starts(100, size, stride)


class TestWeights:
    def test_gaussian_is_symmetric_and_of_variance_one_hundredth_of_the_squared_side(self):
        weight = gaussian(2001)
        assert torch.equal(weight, weight.flip(0))
        assert weight.argmax() == 1000
        one_deviation = round(0.1 * 2001)
        assert weight[1000 + one_deviation] == pytest.approx(torch.tensor(-0.5).exp().item(), rel=1e-3)

    @pytest.mark.parametrize("size", [1, 2, 5, 64])
    def test_same_horizontally_and_vertically(self, size):
        torch.testing.assert_close(gaussian(size), gaussian(size).flip(0), rtol=1e-12, atol=0)

    def test_unknown_weights(self):
        with pytest.raises(ValueError, match="gaussian"):
            tiled(lambda x: x, [random_map(1, 8, 8)], 4, 2, "triangle")


@pytest.mark.parametrize("kind", KINDS)
class TestTiled:
    @pytest.mark.parametrize("height, width", [(20, 33), (16, 40), (41, 9), (17, 16)])
    def test_identity_gives_the_input_back(self, kind, height, width):
        x = random_map(2, 3, height, width)
        torch.testing.assert_close(tiled(lambda tile: tile, [x], 16, 8, kind), x, rtol=1e-6, atol=1e-6)

    def test_constant_function_has_no_seams(self, kind):
        x = random_map(1, 4, 50, 70)
        result = tiled(lambda tile: torch.full_like(tile, 3.0), [x], 16, 11, kind)
        torch.testing.assert_close(result, torch.full_like(x, 3.0), rtol=1e-6, atol=0)

    def test_pointwise_function_of_several_maps_is_as_without_tiles(self, kind):
        image, features = random_map(2, 3, 40, 30), random_map(2, 5, 1, 40, 30, seed=1)

        def function(a: Tensor, b: Tensor) -> Tensor:
            return a[:, :1].sin() * b.mean(1)

        result = tiled(function, [image, features], 16, 8, kind)
        assert result.shape == (2, 1, 40, 30)
        torch.testing.assert_close(result, function(image, features), rtol=1e-6, atol=1e-6)

    def test_every_tile_has_the_same_size_and_is_computed_once(self, kind):
        function = Counted()
        tiled(function, [random_map(1, 1, 50, 70)], 16, 11, kind)
        assert function.sizes == [(16, 16)] * (len(tile_starts(50, 16, 11)) * len(tile_starts(70, 16, 11)))

    def test_a_map_that_is_short_one_way_is_tiled_the_other_way(self, kind):
        function = Counted()
        tiled(function, [random_map(1, 1, 10, 40)], 16, 8, kind)
        assert function.sizes == [(10, 16)] * 4

    @pytest.mark.parametrize("height, width", [(16, 16), (3, 16), (1, 1)])
    def test_a_map_no_larger_than_a_tile_is_given_as_it_is(self, kind, height, width):
        x, given = random_map(2, 3, height, width), []

        def function(tile: Tensor) -> Tensor:
            given.append(tile)
            return tile.repeat(1, 1, 2, 2)

        assert tiled(function, [x], 16, 8, kind).shape == (2, 3, 2 * height, 2 * width)
        assert len(given) == 1 and given[0] is x

    def test_differences_between_tiles_are_blended(self, kind):
        """Tiles of two constants: values in between where they overlap, and where one lies alone, its own."""
        constants = iter([0.0, 1.0])
        result = tiled(lambda tile: torch.full_like(tile, next(constants)), [random_map(1, 1, 16, 24)], 16, 8, kind)
        assert torch.equal(result[..., :8], torch.zeros(1, 1, 16, 8))
        assert torch.equal(result[..., 16:], torch.ones(1, 1, 16, 8))
        overlap = result[..., 8:16]
        assert (overlap > 0).all() and (overlap < 1).all()
        assert (overlap.diff(dim=-1) >= 0).all()
        torch.testing.assert_close(overlap + overlap.flip(-1), torch.ones(1, 1, 16, 8))

    def test_half_precision_is_summed_in_float32(self, kind):
        x = random_map(1, 3, 40, 40).bfloat16()
        result = tiled(lambda tile: tile, [x], 16, 2, kind)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, x)

    def test_a_bad_stride_is_refused_even_where_one_tile_is_enough(self, kind):
        with pytest.raises(UserError, match="gaps"):
            tiled(lambda tile: tile, [random_map(1, 8, 8)], 16, 17, kind)

    def test_inputs_of_different_sizes(self, kind):
        with pytest.raises(ValueError, match="height and width"):
            tiled(lambda a, b: a, [random_map(1, 8, 8), random_map(1, 8, 9)], 4, 2, kind)

    def test_a_function_that_changes_the_size_of_a_tile(self, kind):
        with pytest.raises(ValueError, match="4 x 4 has come back as 3 x 4"):
            tiled(lambda tile: tile[..., 1:], [random_map(1, 8, 8)], 4, 2, kind)


class TestScale:
    """Of the function's output against its input."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("height, width", [(20, 36), (16, 40), (44, 12), (8, 8)])
    def test_pixels_become_blocks_and_blocks_pixels(self, kind, height, width):
        x = random_map(2, 3, height, width)
        blocks = x.repeat_interleave(4, -1).repeat_interleave(4, -2)
        up = tiled(lambda t: F.interpolate(t, scale_factor=4), [x], 16, 12, kind, 4)
        torch.testing.assert_close(up, blocks, rtol=1e-6, atol=1e-6)
        down = tiled(lambda t: F.avg_pool2d(t, 4), [blocks], 64, 48, kind, Fraction(1, 4))
        torch.testing.assert_close(down, x, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("size, stride, length", [(16, 10, 32), (16, 12, 31), (18, 12, 32)])
    def test_starts_and_ends_that_do_not_divide(self, size, stride, length):
        with pytest.raises(ValueError, match=r"multiples of [24] where the scale is 1/4"):
            tiled(lambda t: F.avg_pool2d(t, 4), [random_map(1, 32, length)], size, stride, "gaussian", Fraction(1, 4))

    def test_a_function_of_another_scale(self):
        with pytest.raises(ValueError, match="a tile of 32 x 32 has come back as 16 x 16"):
            tiled(lambda tile: tile, [random_map(1, 20, 20)], 16, 8, "gaussian", 2)


class TestBatches:
    """Several tiles at a time, behind each other."""

    @staticmethod
    def function(image: Tensor, features: Tensor) -> Tensor:
        """Depends on the whole tile and on which image of the batch it is from."""
        return image.mean((-3, -2, -1), keepdim=True) + features.sin()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("height, width", [(20, 33), (41, 9), (16, 16)], ids=str)
    @pytest.mark.parametrize("batch", [2, 3, 100])
    def test_a_batched_result_is_the_unbatched_one(self, kind, height, width, batch):
        maps = [random_map(2, 3, height, width), random_map(2, 5, height, width, seed=1)]
        batched = tiled(self.function, maps, 16, 8, kind, batch=batch)
        torch.testing.assert_close(batched, tiled(self.function, maps, 16, 8, kind), rtol=1e-6, atol=1e-6)

    def test_tiles_are_computed_once_and_the_last_batch_has_the_rest(self):
        numbers = []

        def function(tiles: Tensor) -> Tensor:
            numbers.append(len(tiles))
            return tiles

        tiled(function, [random_map(2, 1, 20, 40)], 16, 8, batch=3)  # 2 x 4 tiles of 2 images.
        assert numbers == [6, 6, 4]

    def test_image_i_of_tile_k_is_number_kb_plus_i(self):
        x = torch.arange(2 * 4).view(2, 1, 1, 4).float()
        seen = []
        tiled(lambda tiles: seen.append(tiles.flatten(1)) or tiles, [x], 2, 2, "uniform", batch=2)
        assert torch.equal(seen[0], torch.tensor([[0.0, 1], [4, 5], [2, 3], [6, 7]]))

    @pytest.mark.parametrize("batch", [0, -1])
    def test_no_tile_at_a_time_is_refused_even_where_one_is_enough(self, batch):
        with pytest.raises(UserError, match="batch takes a number of tiles"):
            tiled(lambda tile: tile, [random_map(1, 8, 8)], 16, 8, batch=batch)


class TestScattered:
    @pytest.mark.parametrize("height, width", [(20, 33), (16, 48), (9, 41)])
    def test_all_of_the_map(self, height, width):
        positions = torch.arange(height * width).view(1, height, width)
        tiles = list(scattered(positions, 16))
        assert len(tiles) == len(tile_starts(height, 16, 16)) * len(tile_starts(width, 16, 16))
        assert {int(p) for tile in tiles for p in tile.flatten()} == set(range(height * width))

    def test_the_same_order_every_time_that_is_not_the_rows(self):
        firsts = [[int(t[0, 0]) for t in scattered(torch.arange(64 * 64).view(64, 64), 8)] for _ in range(2)]
        assert firsts[0] == firsts[1] != sorted(firsts[0])


def test_gaussian_changes_more_smoothly_than_uniform():
    """Between two tiles of different values, the largest step of the Gaussian blend is not at a tile's border."""
    steps = {}
    for kind in KINDS:
        constants = iter([0.0, 1.0])
        x = random_map(1, 1, 64, 96)
        row = tiled(lambda tile, c=constants: torch.full_like(tile, next(c)), [x], 64, 32, kind)[0, 0, 0]
        steps[kind] = row.diff().abs()
    assert steps["uniform"].max() == 0.5
    assert steps["gaussian"].max() < 0.2
    assert steps["gaussian"][[31, 63]].max() < 0.01
