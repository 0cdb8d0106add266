"""The inference form of a quantized layer: what training kept apart is merged, the weight is integer codes.

    x' = T(x)        y = Qa(x') * (codes - zero_point) scale + L1 (L2' x') + c

The update F1 F2 and the transforms are in the codes, L2' = T(L2) (for QArtSR L2 / phi) so that the branch takes the
transformed input too, and c holds b + b_align. Codes are multiplied in float (simulated).
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant.affine import dequantize
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.parts import spread
from quantsr.quant.product import constant_output
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.token_split import input_quantizer
from quantsr.quant.transforms import Rotation, Smoothing

BRANCH = torch.float16


class FoldedLayer(nn.Module):
    """A layer with packed-ready state; empty until :meth:`take` or ``load_state_dict`` fills it.

    State: ``codes`` (out, in, *kernel) uint8, counted from the lowest code; ``scale`` and ``zero_point`` of the
    weight's parts; ``bias`` (out,); ``L1``, ``L2`` in 16 bits, or as released in float32; ``offset_response``
    (out, 1, *kernel); the input's transforms and range.

    Args:
        operation: what the layer computes.
        shape: of its weight.
        recipe: how it was quantized.
        has_bias: whether the original module has a bias.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None
    L1: Tensor
    L2: Tensor
    offset_response: Tensor | None
    dequantized: Tensor | None

    def __init__(self, operation: Operation, shape: torch.Size, recipe: LayerRecipe, has_bias: bool):
        super().__init__()
        self.operation, self.recipe = operation, recipe
        rows, channels, *kernel = shape
        sizes, axis = recipe.parts(channels), operation.axis
        smooths, constant = recipe.smoothing is not None, has_bias or recipe.bias_alignment
        self.smoothing = Smoothing(channels, axis, offset=recipe.offset) if smooths else None
        self.rotation = Rotation(sizes, axis) if recipe.rotation else None
        self.input_quantizer = input_quantizer(recipe, sizes, axis)
        self.part_of = Quantizer(recipe.weight, sizes, 1, rows).part_of
        bounds = (rows, len(sizes)) if recipe.weight.granularity == "channel" else (len(sizes),)
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(bounds))
        self.register_buffer("zero_point", torch.zeros(bounds))
        self.register_buffer("bias", torch.zeros(rows) if constant else None)
        self.register_buffer("offset_response", torch.zeros(rows, 1, *kernel) if recipe.offset else None)
        if recipe.rank:
            rank = min(recipe.rank, rows, channels * int(torch.Size(kernel).numel()))
            dtype = torch.float32 if recipe.weight.as_released else BRANCH
            self.register_buffer("L1", torch.zeros(rows, rank, dtype=dtype))
            self.register_buffer("L2", torch.zeros(rank, channels, *kernel, dtype=dtype))
        self.register_buffer("dequantized", None, persistent=False)

    @classmethod
    @torch.no_grad()
    def of(cls, layer: QuantizedLayer) -> "FoldedLayer":
        """The inference form of a calibrated layer; the layer stays as it is.

        Raises:
            ValueError: the layer is not calibrated.
        """
        if not layer.calibrated:
            raise ValueError("a layer must be calibrated before it is folded: it has seen no data")
        folded = cls(layer.operation, layer.weight.shape, layer.recipe, layer.bias is not None)
        scale, zero_point = layer.weight_quantizer.part_qparams(layer.transformed_weight())
        state = {
            "codes": layer.weight_codes() - layer.recipe.weight.qmin,
            "scale": scale,
            "zero_point": zero_point,
        }
        if (bias := layer.constant()) is not None:
            state["bias"] = bias
        if layer.low_rank is not None:
            down = layer.low_rank.down
            for transform in layer.transforms():
                down = transform.weight(down)
            state |= {"L1": layer.low_rank.L1, "L2": down}
        if layer.offset is not None:
            # The branch takes x - o as well, so that all of W o is to be added again.
            state["offset_response"] = layer.offset_response(layer.merged_weight())
        for part in ("smoothing", "rotation", "input_quantizer"):
            if (module := getattr(layer, part)) is not None:
                state |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        folded.load_state_dict(state)
        return folded.to(layer.weight.device).requires_grad_(False).train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The values of the codes, ``(out, in, *kernel)``, in float32."""
        spec = self.recipe.weight
        scale, zero_point = (
            spread(t, spec.granularity, 1, self.part_of, self.codes.ndim) for t in (self.scale, self.zero_point)
        )
        return dequantize(self.codes.float() + spec.qmin, scale, zero_point)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The same in another type, kept from call to call."""
        if self.dequantized is None or self.dequantized.dtype != dtype:
            self.dequantized = self.weight.to(dtype)
        return self.dequantized

    def drop_cache(self) -> None:
        """Forget the weight that :meth:`weight_as` keeps; it is made of the codes again when it is needed."""
        self.dequantized = None

    def _load_from_state_dict(self, *args: Any) -> None:
        self.drop_cache()
        super()._load_from_state_dict(*args)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        for transform in (self.smoothing, self.rotation):
            if transform is not None:
                x = transform.input(x)
        # The factors in float32, the products in the precision of the model.
        y = self.operation(self.input_quantizer(x).to(dtype), self.weight_as(dtype))
        x = x.to(dtype)
        constant = constant_output(self.operation, x, self.bias, self.offset_response)
        if constant is not None:
            y = y.add_(constant.to(y.dtype))
        if self.recipe.rank:
            down, up = self.L2.to(x.dtype), self.L1.to(x.dtype)
            y = y + self.operation.pointwise(self.operation(x, down), up.view(*up.shape, *(1 for _ in down.shape[2:])))
        return y

    def extra_repr(self) -> str:
        return f"{self.operation.kind}, {self.recipe}, folded"


def fold(model: nn.Module) -> nn.Module:
    """Put every quantized layer of ``model`` into its inference form, in place; returns the model.

    Raises:
        ValueError: a layer that is not calibrated.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    for name, layer in layers:
        model.set_submodule(name, FoldedLayer.of(layer))
    return model
