"""The pieces of a layer's output: its quantized product while that trains, and what is constant in it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quantsr.quant.operation import Operation
from quantsr.quant.transforms import along

if TYPE_CHECKING:
    from quantsr.quant.layer import QuantizedLayer


def constant_output(operation: Operation, x: Tensor, bias: Tensor | None, response: Tensor | None) -> Tensor | None:
    """What a layer adds to its product, broadcastable over the output, or None for nothing.

    Args:
        operation: of the layer.
        x: its input, for the size.
        bias: b + b_align, ``(out,)``.
        response: of the offset o, see :meth:`QuantizedLayer.offset_response`: what the product loses when o is taken
            off the input. At the border, padding takes part of it away.
    """
    if response is None:
        return None if bias is None else along(bias, operation.axis, x.ndim)
    if operation.kind == "Linear":
        return response[:, 0] if bias is None else response[:, 0] + bias
    ones = response.new_ones(1, 1, *x.shape[2:])
    return operation(ones, response, None if bias is None else bias.to(response.dtype))


class TrainedProduct(torch.autograd.Function):
    """The quantized product while its quantizers train.

    Between forward and backward it keeps the layer's input alone: the quantized factors are cheap to compute again,
    where plain autograd would keep a float tensor for every step to them.
    """

    @staticmethod
    def forward(ctx: Any, layer: "QuantizedLayer", x: Tensor, *trained: Tensor) -> Tensor:
        ctx.layer, device = layer, x.device.type
        ctx.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        ctx.save_for_backward(x, *trained)
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer, (x, *trained) = ctx.layer, ctx.saved_tensors
        wants_x = ctx.needs_input_grad[1]
        with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
            x = x.detach().requires_grad_(wants_x)
            x_hat, w_hat = layer.quantized_input(x), layer.quantized_weight(x.dtype)
        factors = [x_hat.detach().to(grad.dtype), w_hat.detach().to(grad.dtype)]
        wanted = (x_hat.requires_grad, w_hat.requires_grad)
        grads = layer.operation.gradients(grad.contiguous(), *factors, wanted)
        pairs = [(t, g.to(t.dtype)) for t, g in zip((x_hat, w_hat), grads, strict=True) if t.requires_grad]
        sources = [*([x] if wants_x else []), *trained]
        found = torch.autograd.grad([t for t, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
        return None, *(found if wants_x else (None, *found))
