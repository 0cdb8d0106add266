"""The integer form of a quantized layer: what :mod:`quantsr.quant.folded` simulates, computed with integers.

    x' = T(x)      y = s_x s_w sum (q_x - z_x) (q_w - z_w) + L1 (L2' x') + c

q are int8 codes, summed in int32 by :mod:`quantsr.kernels`; weights of up to 4 bits are stored two to a byte. Of a
layer whose channels are in parts, each part is a sum of its own. Around the product everything is as in the folded
form: transforms and ranges in float32, the branch in 16 bits, padding with values (not codes) of 0. Inference only.

Of a layer, both forms give the same up to float rounding. Of a whole model they need not: where a value lies between
two codes, its last bit decides which it gets, here as between two devices that simulate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantsr import kernels
from quantsr.kernels.operands import LONGEST_SUM, MOST_BITS, PACKED_BITS, align, pack, part_sums
from quantsr.quant import integer_attention
from quantsr.quant.affine import SMALLEST_SCALE
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.precision import keeping_types
from quantsr.quant.product import constant_output
from quantsr.quant.quantizer import RELEASED_SMALLEST_SCALE
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.transforms import on_line


class Simulated(NamedTuple):
    """A module that :func:`integers` left in float.

    Attributes:
        name: of the module in the model.
        reason: why, as the end of a sentence.
    """

    name: str
    reason: str


class IntegerLayer(nn.Module):
    """A folded layer computed with integers.

    Its output is that of the folded layer up to float rounding. It shares the folded layer's rotation and, where it is
    dynamic, input range; else ``act_scale`` and ``act_zero`` (parts,) are that. ``slope`` and ``intercept`` (in,) are
    smoothing's. ``bias`` holds what is added everywhere, also of an offset's response, and ``offset_response`` is kept
    where it differs at borders. Of the weight it has ``codes`` (out, taps, k) int8 or (out, taps, k / 2) packed uint8,
    with k the input channels, every part filled up to a multiple of 64; ``scale`` and, where not all are 0, ``zero``
    (out, parts); ``sums`` (out, taps, parts) of the codes.
    All that stays as it is where the model around it is given another type. Artefacts store the folded form, whose
    codes have no filling.

    Args:
        folded: the layer; it stays as it is.
        backend: see :data:`quantsr.kernels.Backend`.

    Raises:
        ValueError: its recipe has no integer form.
    """

    codes: Tensor
    sums: Tensor
    scale: Tensor
    zero: Tensor | None
    act_scale: Tensor
    act_zero: Tensor
    bias: Tensor | None
    offset_response: Tensor | None
    slope: Tensor | None
    intercept: Tensor | None
    L1: Tensor
    L2: Tensor
    up: Tensor | None
    down: Tensor | None

    def __init__(self, folded: FoldedLayer, backend: kernels.Backend = "auto"):
        super().__init__()
        shape, recipe = folded.codes.shape, folded.recipe
        if (reason := obstacle(recipe, shape)) is not None:
            raise ValueError(f"a layer of {recipe} cannot be computed with integers: {reason}")
        self.operation, self.recipe, self.backend = folded.operation, recipe, backend
        rows, channels, *kernel = shape
        self.sizes = recipe.parts(channels)
        self.window = kernels.Window(tuple(kernel), *(getattr(self.operation, name) for name in WINDOW))
        self.rotation = folded.rotation
        slope, intercept = (None, None) if folded.smoothing is None else folded.smoothing.line()
        self.register_buffer("slope", slope if slope is None else slope.detach())
        self.register_buffer("intercept", intercept if intercept is None else intercept.detach())
        if recipe.act.range == "dynamic":
            self.input_quantizer = folded.input_quantizer
        else:
            act_scale, act_zero = folded.input_quantizer.part_qparams(folded.codes.new_zeros(1, *shape[1:]))
            self.register_buffer("act_scale", act_scale.detach().float())
            self.register_buffer("act_zero", self._shifted(act_zero.detach()))
        half = 2 ** (recipe.weight.bits - 1)
        codes = (folded.codes.view(rows, channels, -1).to(torch.int16) - half).to(torch.int8)
        codes = align(codes.mT, self.sizes).contiguous()
        self.register_buffer("sums", part_sums(codes, self.sizes))
        self.register_buffer("codes", pack(codes) if recipe.weight.bits <= PACKED_BITS else codes)
        bounds = (rows, len(self.sizes))
        self.register_buffer("scale", folded.scale.float().expand(bounds).contiguous())
        zero = folded.zero_point.float() - recipe.weight.qmin - half
        self.register_buffer("zero", zero.expand(bounds).contiguous() if zero.any() else None)
        bias, response = folded.bias, folded.offset_response
        if response is not None and not any(self.window.padding):
            everywhere = response.flatten(1).sum(1)
            bias, response = everywhere if bias is None else everywhere + bias, None
        self.register_buffer("bias", bias)
        self.register_buffer("offset_response", response)
        if recipe.rank:
            self.register_buffer("L1", folded.L1)
            self.register_buffer("L2", folded.L2)
        self.register_buffer("up", None, persistent=False)
        self.register_buffer("down", None, persistent=False)
        self.train(folded.training)

    @property
    def weight(self) -> kernels.QuantizedWeight:
        """The weight as a factor of an integer product."""
        bits = self.recipe.weight.bits
        return kernels.QuantizedWeight(self.codes, self.sums, self.scale, self.zero, self.sizes, bits)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerLayer":
        return super()._apply(keeping_types(fn), recurse)

    def _shifted(self, zero_point: Tensor) -> Tensor:
        """The zero of an input's codes as kernels count them."""
        spec = self.recipe.act
        return zero_point.float() - (spec.qmin + 2 ** (spec.bits - 1))

    def quantized_input(self, x: Tensor) -> kernels.QuantizedInput:
        """The codes of a transformed input, channels last; a linear layer's tokens are in one axis."""
        spec, last = self.recipe.act, x.movedim(self.operation.axis, -1)
        padded: dict[str, Any] = {
            "padding": self.window.padding,
            "sums": self.zero is not None,
            "backend": self.backend,
        }
        if self.operation.kind == "Linear":
            last = last.reshape(-1, x.shape[-1])
        if spec.granularity == "token":
            smallest = RELEASED_SMALLEST_SCALE if spec.as_released else SMALLEST_SCALE
            return kernels.quantize_tokens(last, spec.bits, self.sizes, spec.symmetric, spec.ratio, smallest, **padded)
        if spec.range == "dynamic":
            scale, zero_point = self.input_quantizer.part_qparams(x)
            scale, zero = scale.float(), self._shifted(zero_point)
        else:
            scale, zero = self.act_scale, self.act_zero
        return kernels.quantize(last, scale, zero, spec.bits, self.sizes, **padded)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.up = self.down = None
        super()._load_from_state_dict(*args)

    def _branch(self, x: Tensor) -> kernels.Branch:
        """The low-rank branch but for its last product; its factors in the type of x are kept from call to call."""
        if self.up is None or self.down is None or self.down.dtype != x.dtype:
            self.up, self.down = self.L1.to(x.dtype), self.L2.to(x.dtype)
        hidden = self.operation(x, self.down).movedim(self.operation.axis, -1)
        return kernels.Branch(hidden.reshape(-1, hidden.shape[-1]), self.up.to(hidden.dtype))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        dtype, first = x.dtype, self.operation.kind != "Linear" and _channels_first(x)
        if self.slope is not None:
            x = on_line(x, self.slope, self.intercept, self.operation.axis)
        if self.rotation is not None:
            x = self.rotation.input(x)
        branch = self._branch(x.to(dtype)) if self.recipe.rank else None
        bias = self.bias if self.offset_response is None else None
        operands = (self.quantized_input(x), self.weight, self.window, bias, branch)
        y = kernels.product(*operands, dtype, channels_first=first, backend=self.backend)
        if self.operation.kind == "Linear":
            return y.view(*x.shape[:-1], len(self.codes))
        y = y.movedim(-1, 1)
        if self.offset_response is None:
            return y
        # At borders an offset's response differs: it is a map, which the kernel does not add.
        constant = constant_output(self.operation, x, self.bias, self.offset_response)
        return y if constant is None else y.add_(constant.to(dtype))

    def extra_repr(self) -> str:
        return f"{self.operation.kind}, {self.recipe}, integers"


WINDOW = ("stride", "padding", "dilation")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _channels_first(x: Tensor) -> bool:
    """Whether a convolution of torch returns its output for ``x`` with channels first in memory, as ``x`` has them."""
    order = CHANNELS_LAST.get(x.ndim)
    return order is None or x.is_contiguous() or not x.is_contiguous(memory_format=order)


def obstacle(recipe: LayerRecipe, shape: torch.Size) -> str | None:
    """Why a layer has no integer form, as the end of a sentence; None if it has one.

    Args:
        recipe: of the layer.
        shape: of its weight, ``(out, in, *kernel)``.
    """
    if recipe.act.bits > MOST_BITS:
        return f"its activations have {recipe.act.bits} bits, and int8 codes have at most {MOST_BITS}"
    if recipe.token_split:
        return "ranges of halves of the tokens (token_split) are only simulated"
    if (products := max(recipe.parts(shape[1])) * int(shape[2:].numel())) > LONGEST_SUM:
        return f"an output sums {products} products, and int32 surely holds {LONGEST_SUM}"
    return None


def integers(model: nn.Module, backend: kernels.Backend = "auto") -> list[Simulated]:
    """Put every folded layer and quantized attention of ``model`` into its integer form, in place.

    Args:
        model: a student in its inference form, as :func:`quantsr.quant.folded.fold` leaves it.
        backend: see :data:`quantsr.kernels.Backend`.

    Returns:
        What is still simulated in float, and why: modules without an integer form stay as they are (activations of more
        than 8 bits, say). Check it where only integers will do.
    """
    kept = []
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedAttention):
            if (reason := integer_attention.obstacle(module)) is not None:
                kept.append(Simulated(name, reason))
            else:
                model.set_submodule(name, integer_attention.IntegerAttention(module, backend))
        elif isinstance(module, FoldedLayer):
            if (reason := obstacle(module.recipe, module.codes.shape)) is not None:
                kept.append(Simulated(name, reason))
            else:
                model.set_submodule(name, IntegerLayer(module, backend))
    return kept
