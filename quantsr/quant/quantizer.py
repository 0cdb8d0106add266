"""One quantizer: a number format with the state that its range needs.

minmax    bounds as buffers, from calibration data
learned   bounds as parameters (learnable boundary quantizer of PassionSR, section 3.2), initialized the same way
step      the scale as a parameter, with LSQ's initial value and gradient (arXiv 1902.08153, section 2)
dynamic   no state: bounds of the tensor itself, without gradient
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quantsr.quant.affine import (
    SMALLEST_SCALE,
    fake_quantize,
    fake_quantize_with_excess,
    qparams,
    quantize,
    round_through,
)
from quantsr.quant.clipping import clipped_extremes
from quantsr.quant.observer import Observer
from quantsr.quant.parts import beside, even, extremes, spread
from quantsr.quant.spec import AffineSpec

RELEASED_SMALLEST_SCALE = 1e-4
"""The same in QuantVSR's released code."""


class Quantizer(Observer):
    """Quantize and dequantize a tensor (simulated: the result is float).

    Args:
        spec: the number format.
        sizes: channels of each part along ``axis``; bounds of different parts are independent.
        axis: the input-channel axis of the tensors to come.
        rows: output channels, for a weight; 1 for an activation.
    """

    part_of: Tensor | None
    lower: Tensor
    upper: Tensor
    scale: Tensor

    def __init__(self, spec: AffineSpec, sizes: Sequence[int] = (1,), axis: int = 1, rows: int = 1):
        super().__init__()
        self.spec, self.sizes, self.axis, self.rows = spec, tuple(sizes), axis, rows
        with torch.device("cpu"):  # In no state dict: its values are needed where others are on the meta device.
            part_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(self.sizes))
        self.register_buffer("part_of", part_of if len(sizes) > 1 else None, persistent=False)
        shape = (rows, len(sizes)) if spec.granularity == "channel" else (len(sizes),)
        self._declare(torch.full(shape, torch.nan))
        self._last_scale: Tensor | None = None  # Of the call before; only `as_released` looks at it.

    def _declare(self, unknown: Tensor) -> None:
        """State of the range; nan until calibrated."""
        if self.spec.range == "learned":
            self.lower, self.upper = nn.Parameter(unknown.clone()), nn.Parameter(unknown.clone())
        elif self.spec.range != "dynamic":
            self.register_buffer("lower", unknown.clone())
            self.register_buffer("upper", unknown.clone())
        if self.spec.range == "step":
            self.scale = nn.Parameter(unknown.clone())

    @property
    def calibrated(self) -> bool:
        """Whether the range is known."""
        return self.spec.range == "dynamic" or not any(t.isnan().any() for t in self.state_dict().values())

    @torch.no_grad()
    def record(self, x: Tensor) -> None:
        """Note the extremes of a calibration batch; :meth:`absorb` takes them into the range.

        For a step also the mean magnitude. Of several calls or devices, the largest mean counts (our choice).
        """
        if self.spec.range != "dynamic":
            lower, upper = self._bounds_of(x)
            # All as maxima, so that one all-reduce joins the batches of several devices.
            notes = [-lower, upper]
            if self.spec.range == "step" and not self.spec.clipping:
                notes.append(self._mean_magnitude(x))
            self.note(torch.stack(notes))

    def _mean_magnitude(self, x: Tensor) -> Tensor:
        """mean|x| of every part, in the shape of the bounds."""
        pieces = x.float().split(list(self.parts_of(x)), self.axis) if len(self.sizes) > 1 else (x.float(),)
        if self.spec.granularity == "channel":
            return torch.stack([piece.abs().flatten(1).mean(1) for piece in pieces], 1)
        return torch.stack([piece.abs().mean() for piece in pieces])

    def parts_of(self, x: Tensor) -> tuple[int, ...]:
        """Sizes of the parts of ``x`` along ``axis``."""
        return self.sizes

    def _bounds_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spec, parts = self.spec, (self.axis, self.parts_of(x))
        if spec.clipping:
            return clipped_extremes(x, spec.granularity, *parts, spec.qmin, spec.qmax, spec.symmetric)
        return extremes(x, spec.granularity, *parts)

    @torch.no_grad()
    def absorb(self, pending: Tensor) -> None:
        """Take the extremes of one batch over all devices, as ``record`` noted them, into the range."""
        self.lower.copy_(self._joined(self.lower, -pending[0], torch.minimum))
        self.upper.copy_(self._joined(self.upper, pending[1], torch.maximum))
        if self.spec.range == "step":
            self.scale.copy_(self._initial_step(pending[2] if len(pending) > 2 else None))
        self._last_scale = (self.upper - self.lower).detach() / self.spec.qmax

    def _initial_step(self, magnitude: Tensor | None) -> Tensor:
        """The step of the bounds, or with mean|x| known LSQ's 2 mean|x| / sqrt(Q_P) (section 2.1)."""
        scale, zero_point = self._step_qparams()
        if magnitude is None:
            return scale
        step = (2 * magnitude / self._levels(zero_point).sqrt()).clamp(min=SMALLEST_SCALE)
        return self._joined(self.scale, step, torch.maximum)

    def _step_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of bounds with 0 between them: in LSQ, 0 always has a code."""
        spec = self.spec
        return qparams(self.lower.clamp(max=0), self.upper.clamp(min=0), spec.qmin, spec.qmax, spec.symmetric)

    def _levels(self, zero_point: Tensor) -> Tensor:
        """Q_P, the highest code as counted from 0; of the longer side where there is a zero point (our choice)."""
        spec = self.spec
        above = spec.qmax - zero_point
        return above if spec.symmetric else torch.maximum(above, zero_point - spec.qmin)

    def _elements(self, x: Tensor) -> float:
        """N of LSQ, for one step: the weights that share it, or the features (section 2.2) of an activation.

        Features are taken to be the channels, at whatever position (our choice): N then depends neither on the number
        and size of the images nor on the pieces that a tensor is handed over in.
        """
        if self.spec.granularity == "channel" or self.rows > 1:
            return x.numel() / self.scale.numel()
        return x.shape[self.axis] / len(self.sizes)

    def _joined(self, past: Tensor, new: Tensor, outer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Past and new values as the running average, or as the outer of the two; new ones where there is no past."""
        momentum = self.spec.momentum
        joined = outer(past, new) if momentum is None else past.lerp(new, 1 - momentum)
        return torch.where(past.isnan(), new, joined)

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor) -> None:
        """Set the range to [lower, upper], replacing what was there; shapes as in :mod:`quantsr.quant.parts`."""
        for value in self.state_dict().values():
            value.fill_(torch.nan)
        self.absorb(torch.stack([-lower, upper]))

    def part_qparams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every part, in the shape of the bounds; differentiable in what is learned."""
        spec = self.spec
        if spec.range == "step":
            zero_point = self._step_qparams()[1]
            weight = (self._elements(x) * self._levels(zero_point)).rsqrt()
            value = self.scale.detach().clamp(min=SMALLEST_SCALE)
            return value + weight * (self.scale - self.scale.detach()), zero_point
        dynamic = spec.range == "dynamic"
        parts = (self.axis, self.parts_of(x))
        lower, upper = extremes(x, spec.granularity, *parts) if dynamic else (self.lower, self.upper)
        if spec.ratio < 1:
            lower, upper = spec.ratio * lower, spec.ratio * upper
        smallest = RELEASED_SMALLEST_SCALE if spec.as_released and spec.range != "learned" else SMALLEST_SCALE
        scale, zero_point = qparams(lower, upper, spec.qmin, spec.qmax, spec.symmetric, smallest)
        if spec.as_released and spec.range == "learned":
            zero_point = round_through(-lower / (scale.detach() if self._last_scale is None else self._last_scale))
            self._last_scale = scale.detach()
        return scale, zero_point

    def qparams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, broadcastable over ``x``."""
        scale, zero_point = self.part_qparams(x)
        return self._spread(scale, x), self._spread(zero_point, x)

    def _spread(self, values: Tensor, x: Tensor) -> Tensor:
        return spread(values, self.spec.granularity, self.axis, self.part_of, x.ndim)

    def quantize(self, x: Tensor) -> Tensor:
        """The codes of ``x``, whole numbers in float32."""
        return quantize(x, *self.qparams(x), self.spec.qmin, self.spec.qmax)

    def _broadcastable(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A view of ``x``, and scale and zero point that broadcast over it."""
        if not even(self.sizes):
            return x, *self.qparams(x)
        scale, zero_point = (beside(t, self.spec.granularity, self.axis, x.ndim) for t in self.part_qparams(x))
        return x.unflatten(self.axis, (len(self.sizes), -1)), scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        (values, scale, zero_point), spec = self._broadcastable(x), self.spec
        if scale.requires_grad and spec.range == "step":
            # LSQ clips before it rounds (eq. 1): the same value, but no gradient beyond the last code (eq. 3 and 5).
            values = values.float().clamp((spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale)
        y = fake_quantize(values, scale, zero_point, spec.qmin, spec.qmax, spec.as_released)
        return y.view_as(x).to(x.dtype)

    @torch.no_grad()
    def quantize_and_find_clamped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradient, and the indices ``(n, axes)`` of what was clamped."""
        x_hat, excess = fake_quantize_with_excess(*self._broadcastable(x), self.spec.qmin, self.spec.qmax)
        excess = excess.view_as(x)
        flat = excess.flatten()
        # Mostly there is none, which a sum of squares tells in a fraction of the time of a search.
        return x_hat.view_as(x), excess.nonzero() if flat.dot(flat) else excess.new_empty(0, x.ndim, dtype=torch.long)

    def extra_repr(self) -> str:
        return str(self.spec) + (f", parts of {self.sizes}" if len(self.sizes) > 1 else "")
