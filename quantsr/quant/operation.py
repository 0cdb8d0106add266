"""The one difference between layers: the product that a module computes, and the axis of its input channels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


@dataclass(frozen=True)
class Operation:
    """Linear or convolution, as a function of input, weight and bias.

    Attributes:
        kind: ``Linear``, ``Conv1d``, ``Conv2d`` or ``Conv3d``.
        axis: axis of the input channels: -1 for linear layers, 1 for convolutions.
        stride, padding, dilation: of a convolution.
    """

    kind: str
    axis: int
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> "Operation":
        """The operation of a module.

        Raises:
            ValueError: the module is no linear layer or plain convolution (ungrouped, zero padding given as numbers).
        """
        if isinstance(module, nn.Linear):
            return cls("Linear", -1)
        if type(module) not in CONVOLUTIONS:
            raise ValueError(f"{type(module).__name__} is no Linear, Conv1d, Conv2d or Conv3d")
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if not plain:
            raise ValueError(f"only ungrouped, zero-padded convolutions are quantized, not {module}")
        return cls(type(module).__name__, 1, module.stride, module.padding, module.dilation)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.kind == "Linear":
            return F.linear(x, weight, bias)
        convolve = getattr(F, self.kind.lower())
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation)

    def pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with a 1x1 weight of this operation's dimensions: the second half of a low-rank branch."""
        return F.linear(x, weight) if self.kind == "Linear" else getattr(F, self.kind.lower())(x, weight)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradients to ``x`` and ``weight`` (those wanted, else None) for the output's gradient."""
        if self.kind == "Linear":
            grad_x = grad @ weight if wanted[0] else None
            grad_weight = grad.flatten(0, -2).T @ x.flatten(0, -2) if wanted[1] else None
            return grad_x, grad_weight
        zeros = [0] * len(self.stride)
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, self.dilation, False, zeros, 1, [*wanted, False]
        )[:2]
