"""One quantized layer for Linear and Conv1d/2d/3d: every method is a recipe of it.

    y = Qa(T(x)) * Qw(T(W_r)) + W_r * o + L1 (L2 x) + b + b_align          W_r = W - L1 L2 + F1 F2

with T the equivalent transforms of the recipe. What a recipe does not use is not there. This is the form that trains;
:mod:`quantsr.quant.folded` is the one that runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantsr.quant import refinement
from quantsr.quant.affine import fake_quantize, qparams
from quantsr.quant.low_rank import LowRank, LowRankUpdate
from quantsr.quant.operation import Layer, Operation
from quantsr.quant.parts import extremes
from quantsr.quant.precision import without_autocast
from quantsr.quant.product import TrainedProduct, constant_output
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.rounding import rounding_of
from quantsr.quant.token_split import input_quantizer
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
        seed: of what the recipe draws at random (a rotation, the start of a low-rank update).

    Raises:
        ValueError: a module that is no plain linear layer or convolution.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, module: Layer, recipe: LayerRecipe, seed: int = 0):
        super().__init__()
        self.operation, self.recipe = Operation.of(module), recipe
        self.mode: Mode = "quantized"
        self.weight, self.bias = module.weight, module.bias
        rows, channels = self.weight.shape[:2]
        sizes, axis = recipe.parts(channels), self.operation.axis
        self.smoothing = (
            Smoothing(channels, axis, recipe.smoothing, offset=recipe.offset, weight_alpha=recipe.smoothing_weight)
            if recipe.smoothing is not None
            else None
        )
        self.rotation = Rotation(sizes, axis, seed) if recipe.rotation else None
        self.low_rank = LowRank(self.weight, recipe.rank) if recipe.rank else None
        self.update = LowRankUpdate(self.weight, recipe.update_rank, seed) if recipe.update_rank else None
        self.bias_alignment = nn.Parameter(torch.zeros(rows)) if recipe.bias_alignment else None
        self.input_quantizer = input_quantizer(recipe, sizes, axis)
        self.weight_quantizer = Quantizer(recipe.weight, sizes, 1, rows)
        self.rounding = rounding_of(recipe.rounding, self.weight.shape)
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

    def merged_weight(self) -> Tensor:
        """W + F1 F2: what the layer stands for, without transforms and quantization; in float32 or better."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return weight if self.update is None else self.update(weight)

    def residual_weight(self) -> Tensor:
        """W_r = W - L1 L2 + F1 F2: what is left for the low bits."""
        w = self.merged_weight()
        return w if self.low_rank is None else self.low_rank.residual(w)

    def transformed(self, w: Tensor) -> Tensor:
        """T(w) of the weight's side."""
        for transform in self.transforms():
            w = transform.weight(w)
        return w

    def transformed_weight(self) -> Tensor:
        """T(W_r), in full precision."""
        if self.low_rank is None or not refinement.applies(self.recipe):
            return self.transformed(self.residual_weight())
        # T(W) - L1 T(L2): while the branch trains, the first term stays as it is, and the second is cheap.
        w, down = self._transformed_merged_weight(self.low_rank), self.transformed(self.low_rank.down)
        with without_autocast(w):
            return torch.addmm(w.flatten(1), self.low_rank.L1, down.flatten(1), alpha=-1).view_as(w)

    def _transformed_merged_weight(self, low_rank: LowRank) -> Tensor:
        """T(W), kept while the branch trains only: else it would be a second weight that nobody needs."""
        if not any(p.requires_grad for p in low_rank.parameters()):
            self._cache.pop("transformed", None)
            return self.transformed(self.merged_weight())
        sources = [self.weight, *([] if self.rotation is None else self.rotation.buffers())]
        return self.cached("transformed", sources, lambda: self.transformed(self.merged_weight()))

    def quantized_input(self, x: Tensor) -> Tensor:
        """Qa(T(x))."""
        return self.input_quantizer(self.transformed_input(x))

    def quantized_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Qw(T(W_r)); computed once, in float32, and kept as ``dtype`` while nothing that makes it is training."""
        sources = [self.weight, *self.weight_sources()]
        return self.cached(f"weight {dtype}", sources, lambda: self._rounded(self.transformed_weight()).to(dtype))

    def _rounded(self, w: Tensor) -> Tensor:
        return self.weight_quantizer(w) if self.rounding is None else self.rounding(w, self.weight_quantizer)

    def weight_codes(self) -> Tensor:
        """The codes of T(W_r), whole numbers in float32."""
        w, quantizer = self.transformed_weight(), self.weight_quantizer
        return quantizer.quantize(w) if self.rounding is None else self.rounding.codes(w, quantizer)

    def weight_sources(self) -> list[Tensor]:
        """What makes the quantized weight beside the weight itself: all that can train, and the bounds."""
        parts = [self.weight_quantizer, self.rounding, self.low_rank, self.update, self.rotation]
        tensors = [t for part in parts if part is not None for t in (*part.parameters(), *part.buffers())]
        return tensors if self.smoothing is None else [*tensors, self.smoothing.scale]

    def cached(self, name: str, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
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

    def drop_cache(self) -> None:
        """Forget what :meth:`cached` keeps; it is computed again when it is needed."""
        self._cache.clear()

    # Forward.

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "quantized":
            if self.mode != "full_precision":
                self._observe(x)
            return self.operation(x, self.weight, self.bias)
        if refinement.applies(self.recipe):
            y = refinement.dual_branch(self, x)
            constant = self.constant()
            return y if constant is None else y.add_(along(constant.to(y.dtype), self.operation.axis, y.ndim))
        trained = self._learns()
        y = TrainedProduct.apply(self, x, *trained) if trained else self.product(x)
        constant = constant_output(self.operation, x, self.constant(), self._offset_response())
        if constant is not None:
            y = y.add_(constant.to(y.dtype))
        if self.low_rank is not None:
            down, up = self.low_rank.down.to(x.dtype), self.low_rank.up.to(x.dtype)
            y = y + self.operation.pointwise(self.operation(x, down), up)
        return y

    def product(self, x: Tensor) -> Tensor:
        """Qa(T(x)) * Qw(T(W_r)): the factors in float32, their product in the precision of x."""
        return self.operation.product(self.quantized_input(x).to(x.dtype), self.quantized_weight(x.dtype))

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

    def offset_response(self, weight: Tensor | None = None) -> Tensor:
        """sum over input channels of w o, as the weight ``(out, 1, *kernel)`` of a layer on a constant input of 1.

        Args:
            weight: w, ``(out, in, *kernel)``; None for W_r.

        Raises:
            ValueError: the recipe has no offset.
        """
        offset = self.offset
        if offset is None:
            raise ValueError(f"no offset in this recipe: {self.recipe}")
        w = self.residual_weight() if weight is None else weight
        rows, channels, *kernel = w.shape
        with without_autocast(w):
            if w[0, 0].numel() == 1:
                return (w.flatten(1) @ offset).view(rows, 1, *kernel)
            return torch.bmm(offset.expand(rows, 1, channels), w.flatten(2)).view(rows, 1, *kernel)

    def _offset_response(self) -> Tensor | None:
        """That of W_r, kept while nothing that makes it is training; None for a recipe without an offset."""
        if self.offset is None:
            return None
        parts = [part for part in (self.low_rank, self.update) if part is not None]
        sources = [self.weight, self.offset, *(p for part in parts for p in part.parameters())]
        if self.weight.dtype == torch.float32 or not self.offset.requires_grad:
            return self.cached("offset", sources, self.offset_response)
        # For the gradient to o, autograd would keep a copy of a 16-bit weight in float32: it is made again there.
        again = partial(checkpoint, self.offset_response, use_reentrant=False, preserve_rng_state=False)
        return self.cached("offset", sources, again)

    # Calibration.

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        if self.mode == "observe_smoothing":
            if self.smoothing is not None:
                self.smoothing.record(x, self.weight)
            return
        self.input_quantizer.record(self.transformed_input(x))
        if not self.weight_quantizer.calibrated and self.weight_quantizer.pending is None:
            self.weight_quantizer.record(self.transformed_weight())

    @property
    def calibrated(self) -> bool:
        """Whether all its ranges and scales are known."""
        parts = [self.smoothing, self.input_quantizer, self.weight_quantizer, self.rounding]
        return all(part.calibrated for part in parts if part is not None)

    def extra_repr(self) -> str:
        return f"{self.operation.kind}, {self.recipe}"
