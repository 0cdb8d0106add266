"""Group norms with the statistics of a whole map, where a network sees the map tile by tile.

A group norm takes mean and variance over its whole input. A tile of sky has others than the image it is from: its
contrast is stretched, and neighbouring tiles disagree. The tiled VAE that OSEDiff takes over runs all tiles side by
side from one norm to the next, which is exact and keeps the whole map's features in memory, or takes the statistics
from the map scaled down to a tile. Here (our choice) one more pass over the tiles measures them: memory stays that of
one tile, and textures keep their scale.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from quantsr.tiling import check_batch, scattered, tiled


def by_tiles(
    network: nn.Module,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    size: int,
    stride: int,
    scale: Fraction | int = 1,
    batch: int = 1,
) -> Tensor:
    """``function(x)``, which runs ``network``, in tiles where ``x`` is larger than one; else as it is.

    Args:
        network: whose group norms are to see the whole of ``x``. One that is no torch module brings what measures and
            applies statistics of one map at a time: ``network.shared_statistics()``.
        function, size, stride, scale: as :func:`quantsr.tiling.tiled` takes them; blended under Gaussian weights.
        x: ``(b, c, h, w)``.
        batch: tiles at a time. Statistics are measured tile by tile all the same: a tile is normalized by those of the
            tiles before it, so that in batches they would be others.

    Raises:
        UserError: no tile at a time.
    """
    check_batch(batch)
    if max(x.shape[-2:]) <= size:
        return function(x)
    own = getattr(network, "shared_statistics", None)
    if own is not None and len(x) > 1:
        return torch.cat([by_tiles(network, function, one, size, stride, scale, batch) for one in x.split(1)])
    statistics = SharedStatistics(network) if own is None else own()
    with torch.no_grad(), statistics.measured():
        for tile in scattered(x, size):
            function(tile)
    with statistics.applied():
        return tiled(function, [x], size, stride, "gaussian", scale, batch)


class SharedStatistics:
    """Mean and variance for every group norm of a network, over all tiles of a map.

    A tile's features depend on the statistics in the norms before it, which are not known until all tiles are seen. So
    a tile is normalized by those of all tiles so far, its own included. They are close to the final ones after a few
    tiles if these come from all over the map: give them in shuffled order.

    Args:
        network: runs each of its norms once a call.
    """

    def __init__(self, network: nn.Module):
        self.norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        self.moments: dict[nn.GroupNorm, Tensor] = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within, tiles that go through the network are taken into the statistics."""
        with self._replaced(self._measure):
            yield

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the norms use the statistics instead of their input's, as constants without gradient.

        Several tiles can come as one batch, behind each other as :func:`quantsr.tiling.tiled` puts them.

        A backward pass that computes activations again (checkpointing) has to be inside, too.
        """
        with self._replaced(self._normalize):
            yield

    @contextmanager
    def _replaced(self, forward: Callable[[nn.GroupNorm, Tensor], Tensor]) -> Iterator[None]:
        for norm in self.norms:
            norm.forward = partial(forward, norm)
        try:
            yield
        finally:
            for norm in self.norms:
                del norm.forward  # The class's own again.

    @torch.no_grad()
    def _measure(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        groups = rearrange(x, "b (g c) ... -> b g (c ...)", g=norm.num_groups)
        groups = groups.to(torch.promote_types(x.dtype, torch.float32))
        # In float64: the variance of the whole is a small difference of large numbers.
        variance, mean = (moment.double() for moment in torch.var_mean(groups, -1, correction=0))
        sums = groups.shape[-1] * torch.stack([torch.ones_like(mean), mean, variance + mean**2])
        self.moments[norm] = self.moments[norm] + sums if norm in self.moments else sums
        return self._normalize(norm, x)

    def _normalize(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        count, total, squares = self.moments[norm]
        mean, channels = total / count, norm.num_channels // norm.num_groups
        deviation = (squares / count - mean**2 + norm.eps).sqrt()
        dtype, tiles = torch.promote_types(x.dtype, torch.float32), len(x) // len(mean)
        mean, deviation = (
            t.repeat_interleave(channels, 1).repeat(tiles, 1).to(dtype).view(len(x), -1, *[1] * (x.ndim - 2))
            for t in (mean, deviation)
        )
        weight, bias = (t.view(-1, *[1] * (x.ndim - 2)).to(dtype) for t in (norm.weight, norm.bias))
        gain = weight / deviation
        return torch.addcmul(bias - mean * gain, x.to(dtype), gain).to(x.dtype)
