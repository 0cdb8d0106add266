"""The token split of PassionSR's released linear layers: ``token_split`` of :class:`LayerRecipe`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantsr.quant.parts import spread
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec


class TokenSplitQuantizer(Quantizer):
    """Bounds for each of the two halves of axis 1, however long it is: tokens of ``(b, n, c)``, channels of ``(b, c)``.

    Args:
        spec: the number format, per tensor.
    """

    def __init__(self, spec: AffineSpec):
        super().__init__(spec, (1, 1), axis=1)

    def parts_of(self, x: Tensor) -> tuple[int, ...]:
        return x.shape[1] // 2, x.shape[1] - x.shape[1] // 2

    def _spread(self, values: Tensor, x: Tensor) -> Tensor:
        second = torch.arange(x.shape[1], device=x.device) >= x.shape[1] // 2
        return spread(values, self.spec.granularity, self.axis, second.long(), x.ndim)

    def _broadcastable(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, *self.qparams(x)

    def extra_repr(self) -> str:
        return f"{self.spec}, halves of axis 1"


def input_quantizer(recipe: LayerRecipe, sizes: Sequence[int], axis: int) -> Quantizer:
    """The quantizer of a layer's input.

    Args:
        recipe: of the layer.
        sizes: of the parts of its channels.
        axis: the channels' axis.
    """
    return TokenSplitQuantizer(recipe.act) if recipe.token_split else Quantizer(recipe.act, sizes, axis)
