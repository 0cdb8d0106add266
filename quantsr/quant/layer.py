"""One quantized layer for Linear and Conv1d/2d/3d: every method is a recipe of it.

    y = Qa(T(x)) * Qw(T(W - L1 L2)) + W * o + L1 (L2 x) + b + b_align

with T the equivalent transforms of the recipe. What a recipe does not use is not there.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quantsr.quant.affine import fake_quantize, qparams
from quantsr.quant.low_rank import LowRank
from quantsr.quant.operation import Layer, Operation
from quantsr.quant.parts import extremes
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.transforms import Rotation, Smoothing, along

Mode = Literal["quantized", "full_precision", "observe_smoothing", "observe_ranges"]


class QuantizedLayer(nn.Module):
    """A layer with simulated quantization of weight and input.

    ``weight`` and ``bias`` are the module's own parameters (shared, never trained here). Its ``mode`` says what a
    forward pass does: compute with quantization, compute in full precision, or compute in full precision while the
    quantizers note what they see (:func:`quantsr.quant.calibrate.settle` takes the notes in).

    Args:
        module: the layer to quantize.
        recipe: how.
        seed: of a rotation.

    Raises:
        ValueError: a module that is no plain linear layer or convolution.
    """

    weight: Tensor
    bias: Tensor | None
    frozen_weight: Tensor | None
    frozen_offset_response: Tensor | None

    def __init__(self, module: Layer, recipe: LayerRecipe, seed: int = 0):
        super().__init__()
        self.operation, self.recipe = Operation.of(module), recipe
        self.mode: Mode = "quantized"
        self.weight, self.bias = module.weight, module.bias
        rows, channels = self.weight.shape[:2]
        sizes, axis = recipe.parts(channels), self.operation.axis
        self.smoothing = (
            Smoothing(channels, axis, recipe.smoothing, offset=recipe.offset) if recipe.smoothing is not None else None
        )
        self.rotation = Rotation(sizes, axis, seed) if recipe.rotation else None
        self.low_rank = LowRank(self.weight, recipe.rank) if recipe.rank else None
        self.bias_alignment = nn.Parameter(torch.zeros(rows)) if recipe.bias_alignment else None
        self.input_quantizer = Quantizer(recipe.act, sizes, axis)
        self.weight_quantizer = Quantizer(recipe.weight, sizes, 1, rows)
        # Set by `freeze`: what is left of the weight when it is known only in its codes.
        self.register_buffer("frozen_weight", None, persistent=False)
        self.register_buffer("frozen_offset_response", None, persistent=False)
        self._cache: dict[str, tuple[Sequence[Tensor], list[tuple], Tensor]] = {}
        self.to(self.weight.device)

    # The two factors of the quantized product.

    def transforms(self) -> list[Smoothing | Rotation]:
        """The equivalent transforms, in the order in which they are applied."""
        return [t for t in (self.smoothing, self.rotation) if t is not None]

    def transformed_input(self, x: Tensor) -> Tensor:
        """T(x)."""
        for transform in self.transforms():
            x = transform.input(x)
        return x

    def transformed_weight(self) -> Tensor:
        """T(W - L1 L2), in full precision."""
        w = self.weight if self.low_rank is None else self.low_rank.residual(self.weight)
        for transform in self.transforms():
            w = transform.weight(w)
        return w

    def quantized_input(self, x: Tensor) -> Tensor:
        """Qa(T(x))."""
        return self.input_quantizer(self.transformed_input(x))

    def quantized_weight(self) -> Tensor:
        """Qw(T(W - L1 L2)); computed once while nothing that makes it is training."""
        if self.frozen_weight is not None:
            return self.frozen_weight
        sources = [self.weight, *self.weight_sources()]
        return self._cached("weight", sources, lambda: self.weight_quantizer(self.transformed_weight()))

    def weight_sources(self) -> list[Tensor]:
        """What makes the quantized weight beside the weight itself: all that can train, and the bounds."""
        parts = [self.weight_quantizer, self.low_rank, self.rotation]
        tensors = [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]
        return tensors if self.smoothing is None else [*tensors, self.smoothing.scale]

    def _cached(self, name: str, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, kept until a source changes (an in-place update counts up a tensor's version)."""
        if any(t.requires_grad for t in sources):
            self._cache.pop(name, None)
            return compute()
        # The sources are kept too: the id of a tensor that is gone may come back as that of another.
        state = [(id(t), t._version, t.data_ptr(), t.dtype) for t in sources]
        if name not in self._cache or self._cache[name][1] != state:
            with torch.inference_mode(False):  # What a validation leaves here, training must be able to use.
                self._cache[name] = (sources, state, compute().detach())
        return self._cache[name][2]

    # Forward.

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "quantized":
            if self.mode != "full_precision":
                self._observe(x)
            return self.operation(x, self.weight, self.bias)
        trained = self._learns()
        y = _Product.apply(self, x, *trained) if trained else self._product(x)
        constant = self._constant_output(x)
        if constant is not None:
            y = y.add_(constant.to(y.dtype))
        if self.low_rank is not None:
            down = self.operation(x, self.low_rank.down)
            y = y + self.operation.pointwise(down, self.low_rank.up)
        return y

    def _product(self, x: Tensor) -> Tensor:
        return self.operation.product(self.quantized_input(x), self.quantized_weight())

    @property
    def offset(self) -> nn.Parameter | None:
        """The offset o of the smoothing, where the recipe has one."""
        return None if self.smoothing is None else self.smoothing.offset

    def trained(self) -> list[Tensor]:
        """The parameters of the quantized product that train at present."""
        offset = [] if self.offset is None else [self.offset]
        sources = [*self.weight_sources(), *self.input_quantizer.parameters(), *offset]
        return [t for t in sources if t.requires_grad]

    def _learns(self) -> list[Tensor]:
        """What trains in the product at present, where the product may be computed twice."""
        # Not so with the released code's ranges: they remember the call before.
        as_released = self.recipe.act.as_released or self.recipe.weight.as_released
        return self.trained() if torch.is_grad_enabled() and not as_released else []

    def constant(self) -> Tensor | None:
        """b + b_align, ``(out,)``, or None."""
        bias = self.bias
        if bias is not None and self.recipe.quantize_bias:
            spec = self.recipe.weight
            lower, upper = extremes(bias, "tensor", 0, (1,))
            bias = fake_quantize(
                bias, *qparams(lower, upper, spec.qmin, spec.qmax, spec.symmetric), spec.qmin, spec.qmax
            )
        if self.bias_alignment is None:
            return bias
        return self.bias_alignment if bias is None else bias + self.bias_alignment

    def offset_response(self) -> Tensor:
        """sum over input channels of W o, as the weight ``(out, 1, *kernel)`` of a layer on a constant input of 1."""
        if self.frozen_offset_response is not None:
            return self.frozen_offset_response
        offset = self.offset
        if offset is None:
            raise ValueError(f"no offset in this recipe: {self.recipe}")
        w = self.weight if self.low_rank is None else self.low_rank.residual(self.weight)
        sources = [self.weight, offset, *([] if self.low_rank is None else self.low_rank.parameters())]

        def compute() -> Tensor:
            rows, channels, *kernel = w.shape
            with torch.autocast(w.device.type, enabled=False):
                if w[0, 0].numel() == 1:
                    return (w.flatten(1) @ offset).view(rows, 1, *kernel)
                return torch.bmm(offset.expand(rows, 1, channels), w.flatten(2)).view(rows, 1, *kernel)

        return self._cached("offset", sources, compute)

    def _constant_output(self, x: Tensor) -> Tensor | None:
        """b + b_align + W * o, broadcastable over the output, or None.

        W * o is what the product loses when o is taken off the input. At the border, padding takes part of it away.
        """
        bias = self.constant()
        if self.offset is None:
            return None if bias is None else along(bias, self.operation.axis, x.ndim)
        response = self.offset_response()
        if self.operation.kind == "Linear":
            return response[:, 0] if bias is None else response[:, 0] + bias
        ones = response.new_ones(1, 1, *x.shape[2:])
        return self.operation(ones, response, None if bias is None else bias.to(response.dtype))

    # Calibration and deployment.

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if self.mode == "observe_smoothing":
            if self.smoothing is not None:
                self.smoothing.record(x, self.weight)
            return
        self.input_quantizer.record(self.transformed_input(x))
        if not self.weight_quantizer.calibrated:
            self.weight_quantizer.record(self.transformed_weight())

    @property
    def calibrated(self) -> bool:
        """Whether all its ranges and scales are known."""
        smoothed = self.smoothing is None or self.smoothing.calibrated
        known = self.frozen_weight is not None or self.weight_quantizer.calibrated
        return smoothed and known and self.input_quantizer.calibrated

    @torch.no_grad()
    def freeze(self, weight: Tensor, offset_response: Tensor | None) -> None:
        """Forget the full-precision weight: compute with this quantized one from now on.

        Args:
            weight: Qw(T(W - L1 L2)), ``(out, in, *kernel)``.
            offset_response: of :meth:`offset_response`, for recipes with an offset.
        """
        self.frozen_weight, self.frozen_offset_response = weight, offset_response
        self.register_parameter("weight", None)
        self._cache.clear()

    def extra_repr(self) -> str:
        return f"{self.operation.kind}, {self.recipe}"


class _Product(torch.autograd.Function):
    """The quantized product while its quantizers train.

    Between forward and backward it keeps the layer's input alone: the quantized factors are cheap to compute again,
    where plain autograd would keep a float tensor for every step to them.
    """

    @staticmethod
    def forward(ctx: Any, layer: QuantizedLayer, x: Tensor, *trained: Tensor) -> Tensor:
        ctx.layer, device = layer, x.device.type
        ctx.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        ctx.save_for_backward(x, *trained)
        return layer._product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, (x, *trained) = ctx.layer, ctx.saved_tensors
        wants_x = ctx.needs_input_grad[1]
        with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
            x = x.detach().requires_grad_(wants_x)
            x_hat, w_hat = layer.quantized_input(x), layer.quantized_weight()
        factors = [x_hat.detach().to(grad.dtype), w_hat.detach().to(grad.dtype)]
        wanted = (x_hat.requires_grad, w_hat.requires_grad)
        grads = layer.operation.gradients(grad.contiguous(), *factors, wanted)
        pairs = [(t, g.to(t.dtype)) for t, g in zip((x_hat, w_hat), grads, strict=True) if t.requires_grad]
        sources = [*([x] if wants_x else []), *trained]
        found = torch.autograd.grad([t for t, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
        return None, *(found if wants_x else (None, *found))
