"""Run a function over overlapping tiles of a large map and blend the results.

Aggregation sampling of StableSR (arXiv 2305.07015, section 3.3), which MGLD-VSR takes over: latent tiles of 64 with
stride 32 under Gaussian weights, and pixel tiles of 960 with stride 750 under uniform ones.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from quantsr.errors import UserError

VARIANCE = 0.01
"""Of the Gaussian, where the side of the tile is 1."""


def tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Where tiles begin so that they cover ``[0, length)``, the last one flush with the end.

    Args:
        length: of the axis.
        size: of a tile.
        stride: between the beginnings of neighbouring tiles; the last two may be closer.

    Returns:
        Ascending starts; ``[0]`` if the axis is no longer than a tile.

    Raises:
        UserError: a stride that is not within 1 to ``size``, which would leave gaps.
    """
    if not 1 <= stride <= size:
        raise UserError(
            f"Tiles of {size} with a stride of {stride} leave gaps: the stride goes from 1 to the tile's size."
        )
    return [*range(0, length - size, stride), max(length - size, 0)]


def scattered(x: Tensor, size: int) -> Iterator[Tensor]:
    """Tiles that cover a map ``(..., h, w)`` with as little overlap as possible, in an order from all over the map."""
    rows, columns = (tile_starts(length, size, size) for length in x.shape[-2:])
    places = list(product(rows, columns))
    for number in torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist():
        top, left = places[number]
        yield x[..., top : top + size, left : left + size]


def tiled(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    size: int,
    stride: int,
    weights: str = "gaussian",
    scale: Fraction | int = 1,
    batch: int = 1,
) -> Tensor:
    """``function(*inputs)`` on maps of any size, tile after tile.

    Args:
        function: takes the tiles of the inputs, each ``(..., tile_h, tile_w)``, and returns a tensor of ``scale`` times
            that height and width; its other axes may be others.
        inputs: maps ``(..., h, w)`` with the same h and w.
        size: side of a tile; along an axis that is shorter, the tile has the whole axis.
        stride: between the beginnings of neighbouring tiles, at most ``size``.
        weights: ``gaussian`` favours the middle of a tile, see :func:`gaussian`; ``uniform`` is the plain average.
        scale: between the function's input and output; a decoder from 1/8 has 8, its encoder ``Fraction(1, 8)``. It
            must keep sizes and starts of tiles whole, and h and w.
        batch: tiles given to the function at a time, one behind the other along the first axis, which is then that of
            the images: of n tiles of b images, image i of tile k is number ``k b + i``. Inputs and result have the same
            first axis.

    Returns:
        ``(..., scale*h, scale*w)`` in the dtype of what the function returns, summed in float32 or better. Maps no
        larger than a tile are given to the function as they are.

    Raises:
        UserError: a stride that leaves gaps, or no tile at a time.
        ValueError: inputs of different sizes, unknown weights, a scale that does not divide sizes or starts, or a
            function that returns another size.
    """
    check_batch(batch)
    sizes = {tuple(x.shape[-2:]) for x in inputs}
    if len(sizes) != 1:
        raise ValueError(f"inputs share one height and width, not {sorted(sizes)}")
    ((height, width),) = sizes
    rows, columns = (_axis(length, size, stride, weights, scale) for length in (height, width))
    if len(rows) == len(columns) == 1:
        return function(*inputs)
    total = None
    places = list(product(rows, columns))
    cuts = [(y, x) for (y, _, _), (x, _, _) in places]
    for ((_, out_y, weight_y), (_, out_x, weight_x)), tile in zip(
        places, _in_batches(function, inputs, cuts, batch), strict=True
    ):
        if tile.shape[-2:] != (len(weight_y), len(weight_x)):
            came, expected = (f"{w} x {h}" for h, w in (tile.shape[-2:], (len(weight_y), len(weight_x))))
            raise ValueError(f"a tile of {expected} has come back as {came}")
        if total is None:
            dtype = torch.promote_types(tile.dtype, torch.float32)
            total = tile.new_zeros((*tile.shape[:-2], rows[-1][1].stop, columns[-1][1].stop), dtype=dtype)
        weight = torch.outer(weight_y, weight_x).to(total.dtype).to(total.device)
        total[..., out_y, out_x] += tile * weight
    return total.to(tile.dtype)


def check_batch(batch: int) -> None:
    """Refuse a number of tiles at a time below 1 with a UserError."""
    if batch < 1:
        raise UserError(f"batch takes a number of tiles at a time, 1 or more, not {batch}.")


def _in_batches(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], cuts: Sequence[tuple[slice, slice]], batch: int
) -> Iterator[Tensor]:
    """``function`` of the tiles at ``cuts``, one after the other, computed ``batch`` at a time.

    All tiles of a map are of one size, so that they fit behind each other.
    """
    for first in range(0, len(cuts), batch):
        chosen = cuts[first : first + batch]
        if len(chosen) == 1:  # Views, not copies.
            yield function(*(tensor[..., y, x] for tensor in inputs for y, x in chosen))
        else:
            tiles = [torch.cat([tensor[..., y, x] for y, x in chosen]) for tensor in inputs]
            yield from function(*tiles).chunk(len(chosen))


def gaussian(size: int) -> Tensor:
    """Weights ``(size,)`` of an axis, 1 where the tile's middle is and falling towards its ends.

    The authors' code has the middle at (n - 1) / 2 horizontally and at n / 2 vertically. The second is a slip, as
    indices go from 0 to n - 1: here it is (n - 1) / 2 for both.
    """
    position = torch.arange(size, dtype=torch.float64)
    return torch.exp(-(((position - (size - 1) / 2) / size) ** 2) / (2 * VARIANCE))


KINDS = {"gaussian": gaussian, "uniform": lambda size: torch.ones(size, dtype=torch.float64)}


def _axis(length: int, size: int, stride: int, kind: str, scale: Fraction | int) -> list[tuple[slice, slice, Tensor]]:
    """Place in the input, place in the output and weights of every tile along one axis.

    Tiles lie on a grid and both kinds of weights are products over the axes, so that they can be normalized axis by
    axis: at every position the weights of all tiles add up to 1, and where there is one tile, its weight is exactly 1.
    """
    if kind not in KINDS:
        raise ValueError(f"weights are one of {list(KINDS)}, not {kind!r}")
    places = [slice(start, start + min(size, length)) for start in tile_starts(length, size, stride)]
    outputs = [slice(_scaled(place.start, scale), _scaled(place.stop, scale)) for place in places]
    weight = KINDS[kind](outputs[0].stop)
    total = torch.zeros(outputs[-1].stop, dtype=torch.float64)
    for output in outputs:
        total[output] += weight
    return [(place, output, weight / total[output]) for place, output in zip(places, outputs, strict=True)]


def _scaled(position: int, scale: Fraction | int) -> int:
    scaled = position * Fraction(scale)
    if scaled.denominator != 1:
        raise ValueError(f"tiles begin and end at multiples of {scaled.denominator} where the scale is {scale}")
    return int(scaled)
