"""Which input positions an output position of a convolution sees."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding and dilation of a convolution of any dimensions; of a linear layer, none of them.

    Padding is of zeros: not of codes, but of values.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether every output sees the one input of its own position."""
        return self.taps == 1 and set(self.stride) <= {1} and not any(self.padding)

    @property
    def valid(self) -> "Window":
        """The same over an input that begins and ends with the padding."""
        return replace(self, padding=(0,) * len(self.padding))

    def output(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Spatial size of the output for that of an input."""
        axes = zip(spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * pad - dilation * (k - 1) - 1) // step + 1 for n, k, step, pad, dilation in axes)

    def views(self, x: Tensor) -> Iterator[Tensor]:
        """For every tap, what the outputs see through it.

        Args:
            x: ``(b, *spatial, c)``; padding is of its zeros.

        Yields:
            ``(b, *output, c)``.
        """
        if not self.kernel:
            yield x
            return
        output = self.output(x.shape[1:-1])
        x = F.pad(x, [0, 0, *(pad for axis in reversed(self.padding) for pad in (axis, axis))])
        for tap in product(*map(range, self.kernel)):
            axes = zip(tap, self.stride, self.dilation, output, strict=True)
            # The first and the last position that outputs see along every axis, and those a stride apart between them.
            reach = [slice(at * d, at * d + step * (n - 1) + 1, step) for at, step, d, n in axes]
            yield x[(slice(None), *reach)]

    def planar(self, spatial: Sequence[int]) -> tuple["Window", tuple[int, int]] | None:
        """The same as a window over two axes, with the input's size along them; None for a truly three-dimensional one.

        Axes are joined where the kernel does not reach along one of them, as in the temporal convolutions of video
        models; the number of images stays.
        """
        if len(self.kernel) == 1:
            added = Window((1, *self.kernel), (1, *self.stride), (0, *self.padding), (1, *self.dilation))
            return added, (1, spatial[0])
        if len(self.kernel) == 2:
            return self, (spatial[0], spatial[1])
        idle = [
            k == 1 and step == 1 and pad == 0
            for k, step, pad in zip(self.kernel, self.stride, self.padding, strict=True)
        ]
        if len(self.kernel) != 3 or not all(idle[1:]):
            return None
        first = replace(self, **{name: getattr(self, name)[:2] for name in ("kernel", "stride", "padding", "dilation")})
        return first, (spatial[0], spatial[1] * spatial[2])
