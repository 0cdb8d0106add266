"""The one difference between layers: the product that a module computes, and the axis of its input channels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quantsr.quant.precision import without_autocast

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
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
    def of(cls, module: Layer) -> "Operation":
        """The operation of a module.

        Raises:
            ValueError: the module is no linear layer or plain convolution (ungrouped, zero padding given as numbers).
        """
        if isinstance(module, nn.Linear):
            return cls("Linear", -1)
        if type(module) not in CONVOLUTIONS:
            raise ValueError(f"{type(module).__name__} is no Linear, Conv1d, Conv2d or Conv3d")
        if module.groups > 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise ValueError(f"only ungrouped, zero-padded convolutions are quantized, not {module}")
        return cls(type(module).__name__, 1, module.stride, module.padding, module.dilation)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.kind == "Linear":
            # Of an expanded tensor torch computes the product in another way while the weight trains: other last bits.
            return F.linear(x.contiguous(), weight, bias)
        convolve = getattr(F, self.kind.lower())
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same without bias; where only ``x`` learns, ``x`` is not kept, as a convolution of torch would."""
        if self.kind == "Linear" or weight.requires_grad or not x.requires_grad:
            return self(x, weight)
        return _FixedWeight.apply(x, weight, self)

    def pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product with a 1x1 weight of this operation's dimensions: the second half of a low-rank branch."""
        return F.linear(x, weight) if self.kind == "Linear" else getattr(F, self.kind.lower())(x, weight)

    def add_pointwise(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """y + the product of x with ``weight``, ``(out, in)``, at every position, in the memory and type of y."""
        y = y.contiguous()
        x, weight = x.to(y.dtype), weight.to(y.dtype)
        with without_autocast(y):
            if self.kind == "Linear":
                y.view(-1, len(weight)).addmm_(x.reshape(-1, x.shape[-1]), weight.T)
            else:
                y.flatten(2).baddbmm_(weight.expand(len(y), -1, -1), x.flatten(2))
        return y

    def pointwise_gradients(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients to ``weight`` and ``x`` for that to the output of :meth:`add_pointwise`."""
        if self.kind == "Linear":
            return grad.reshape(-1, len(weight)).T @ x.reshape(-1, x.shape[-1]), grad @ weight
        flat = grad.flatten(2)
        grad_x = torch.bmm(weight.T.expand(len(flat), -1, -1), flat).view(x.shape)
        return torch.bmm(flat, x.flatten(2).mT).sum(0), grad_x

    def single_weight_gradients(self, grad: Tensor, x: Tensor, shape: torch.Size, entries: Tensor) -> Tensor:
        """Gradients ``(n,)`` to entries ``(n, weight axes)`` of a weight of a shape, one row of products for each."""
        rows, channels, *kernel = entries.T
        if self.kind == "Linear":
            return (grad.flatten(0, -2)[:, rows] * x.flatten(0, -2)[:, channels]).sum(0)
        n, zeros = len(entries), [0] * len(self.stride)
        one_each = grad.new_empty(1).expand(n, 1, *shape[2:])  # A convolution of n groups with one channel each.
        found = torch.ops.aten.convolution_backward(
            grad[:, rows], x[:, channels], one_each, None,
            self.stride, self.padding, self.dilation, False, zeros, n, [False, True, False],
        )[1]  # fmt: skip
        return found[(torch.arange(n, device=grad.device), 0, *kernel)]

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


class _FixedWeight(torch.autograd.Function):
    """A convolution that learns nothing: for the backward pass it keeps its weight, and the shape of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        ctx.operation, ctx.shape = operation, x.shape
        ctx.save_for_backward(weight)
        return operation(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        nothing = grad.new_empty(1).expand(ctx.shape)
        return ctx.operation.gradients(grad, nothing, weight.to(grad.dtype), (True, False))[0], None, None
