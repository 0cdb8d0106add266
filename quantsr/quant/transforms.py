"""Equivalent transforms: change input and weight so that their product stays, and both become easier to quantize.

Each has ``input(x)`` and ``weight(w)`` with ``operation(input(x), weight(w)) == operation(x, w)`` in exact arithmetic
(after ``Smoothing`` with an offset o the layer adds ``operation(o, w)``, see :meth:`QuantizedLayer.offset_response`).
Weights are ``(out, in, *kernel)``; the input-channel axis of x is given.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant.hadamard import factor, hadamard_transform, multiply, random_orthogonal
from quantsr.quant.observer import Scale
from quantsr.quant.parts import even
from quantsr.quant.precision import without_autocast


def along(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """``(c,)`` reshaped to broadcast along ``axis`` of a tensor with ``ndim`` axes."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def on_line(x: Tensor, slope: Tensor, intercept: Tensor | None, axis: int) -> Tensor:
    """slope x + intercept with both ``(c,)`` along ``axis``, in one pass."""
    slope = along(slope, axis, x.ndim)
    return x * slope if intercept is None else torch.addcmul(along(intercept, axis, x.ndim), x, slope)


def channel_magnitude(x: Tensor, axis: int) -> Tensor:
    """max |x| of every channel, ``(c,)``, at least 1e-5."""
    lower, upper = torch.aminmax(x.detach().float().movedim(axis, 0).flatten(1), dim=1)
    return torch.maximum(-lower, upper).clamp(min=1e-5)


class Smoothing(Scale):
    """Scale s and offset o per input channel: x becomes (x - o) / s, W becomes W s.

    LET of PassionSR (section 3.3); 1 / s is the phi of QArtSR.

    Args:
        channels: input channels.
        axis: channel axis of the input.
        alpha: initial s = max|x|^alpha / max|W|^weight_alpha, per channel.
        momentum: weight of the past when s is averaged over calibration batches (PassionSR: a running average of 0.1
            for the new).
        offset: whether o exists; it starts at 0.
        weight_alpha: None for alpha.
    """

    def __init__(
        self,
        channels: int,
        axis: int,
        alpha: float = 0.3,
        momentum: float = 0.9,
        offset: bool = True,
        weight_alpha: float | None = None,
    ):
        super().__init__(channels, momentum)
        self.axis, self.alpha = axis, alpha
        self.weight_alpha = alpha if weight_alpha is None else weight_alpha
        self.offset = nn.Parameter(torch.zeros(channels)) if offset else None

    def record(self, x: Tensor, weight: Tensor) -> None:
        """Note the magnitudes of a calibration batch and of the weight; :meth:`absorb` takes them into s."""
        self.note(torch.stack([channel_magnitude(x, self.axis), channel_magnitude(weight, 1)]))

    def absorb(self, pending: Tensor) -> None:
        """Average the magnitudes of one batch over all devices, as ``record`` noted them, into s."""
        self.average(pending[0] ** self.alpha / pending[1] ** self.weight_alpha)

    def line(self) -> tuple[Tensor, Tensor | None]:
        """Slope 1 / s and intercept -o / s, None without offset."""
        inverse = 1 / self.scale
        return inverse, None if self.offset is None else -self.offset * inverse

    def input(self, x: Tensor) -> Tensor:
        return on_line(x, *self.line(), self.axis)

    def weight(self, w: Tensor) -> Tensor:
        # The kernel is part of the channels here: a gradient summed over rows and kernel at once is ten times slower.
        scale = self.scale.repeat_interleave(w[0, 0].numel())
        return (w.flatten(1) * scale).view_as(w)


class Rotation(nn.Module):
    """x H and H^T W over the input channels, H orthogonal and block-diagonal over the parts.

    As in QuantVSR (section 3.3) and QuaRot.
    H is a Hadamard matrix behind random signs where the part's size has one (applied by the fast transform, only the
    signs are stored), and a random orthogonal matrix otherwise.

    Args:
        sizes: channels of each part.
        axis: channel axis of the input.
        seed: of signs and matrices.
    """

    def __init__(self, sizes: Sequence[int], axis: int, seed: int = 0):
        super().__init__()
        self.sizes, self.axis = tuple(sizes), axis
        generator = torch.Generator().manual_seed(seed)
        with torch.device("cpu"):  # The generator's.
            for number, size in enumerate(self.sizes):
                fast = factor(size) is not None
                signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1
                self.register_buffer(f"rotation_{number}", signs if fast else random_orthogonal(size, generator))

    def set_matrices(self, matrices: Sequence[Tensor]) -> None:
        """Use these orthogonal matrices, ``(size, size)`` for each part, instead of the drawn ones."""
        for number, matrix in enumerate(matrices):
            setattr(self, f"rotation_{number}", matrix.clone())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Matrices of other makers come whole where ours are known by their signs.
        for number, size in enumerate(self.sizes):
            stored = state_dict.get(f"{prefix}rotation_{number}")
            if stored is not None and stored.shape == (size, size):
                setattr(self, f"rotation_{number}", stored.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rotate(self, x: Tensor, axis: int, transpose: bool = False) -> Tensor:
        """x H (or x H^T) along ``axis``."""
        axis %= x.ndim
        stored = [getattr(self, f"rotation_{number}") for number in range(len(self.sizes))]
        if even(self.sizes) and all(t.ndim == 1 for t in stored):  # All parts at once.
            parts = x.unflatten(axis, (len(self.sizes), -1))
            signs = torch.stack(stored) if len(stored) > 1 else stored[0][None]
            return _signed_hadamard(parts, signs.to(x.dtype), axis + 1, transpose).view(x.shape)
        rotated = []
        for piece, t in zip(x.split(self.sizes, axis), (t.to(x.dtype) for t in stored), strict=True):
            if t.ndim == 1:
                rotated.append(_signed_hadamard(piece, t, axis, transpose))
            else:
                with without_autocast(x):
                    rotated.append(multiply(piece, t.T if transpose else t, axis))
        return torch.cat(rotated, axis)

    def input(self, x: Tensor) -> Tensor:
        return self._rotate(x, self.axis)

    def weight(self, w: Tensor) -> Tensor:
        # Row vectors: W x becomes (W H)(H^T x), and H^T x is x H for x as a row.
        return self._rotate(w, 1)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """The gradient to x for that to x H."""
        return self._rotate(grad, self.axis, transpose=True)

    def weight_gradient(self, grad: Tensor) -> Tensor:
        """The gradient to W for that to H^T W."""
        return self._rotate(grad, 1, transpose=True)


def _signed_hadamard(x: Tensor, signs: Tensor, axis: int, transpose: bool) -> Tensor:
    """x diag(signs) H along ``axis``, or its transpose. ``signs`` may have axes of x before that one, too."""
    signs = signs.view(*signs.shape, *(1 for _ in range(axis + 1, x.ndim)))
    return hadamard_transform(x, axis, transpose=True) * signs if transpose else hadamard_transform(x * signs, axis)
