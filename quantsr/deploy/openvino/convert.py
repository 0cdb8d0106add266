"""A torch network with folded layers to an OpenVINO model: traced, its quantized parts written out by us."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openvino as ov
import torch
from openvino.frontend.pytorch import ConversionExtension
from torch import Tensor, nn

from quantsr.deploy.openvino.layer import layer_output
from quantsr.deploy.openvino.quantize import quantized
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.quantizer import Quantizer

OPERATION = "quantsr::quantized"
_modules: list[nn.Module] = []
"""Of the conversion that is going on, by their number in the traced graph."""


@torch.library.custom_op(OPERATION, mutates_args=())
def _quantized(x: Tensor, number: int) -> Tensor:
    """One operation in the traced graph for a whole module; of its output only the shape is needed."""
    module = _modules[number]
    if isinstance(module, Quantizer):
        return x.clone()
    shape = module.operation(*(torch.empty(t.shape, device="meta") for t in (x, module.codes))).shape
    # Cheap, and dependent on the input in a way that no normalization takes out again.
    phase = x.flatten() @ torch.arange(float(x.numel())).sin()
    return (torch.arange(float(shape.numel())) + phase).sin().view(shape)


class _Marked(nn.Module):
    """A quantized module as a single operation."""

    def __init__(self, module: nn.Module, number: int):
        super().__init__()
        self.original, self.number = module, number

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantsr.quantized(x, self.number)


class _Constant(nn.Module):
    """A layer whose input never changes."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def convert(network: nn.Module, example: Tensor) -> ov.Model:
    """An OpenVINO model of a network, with integer products where the network's layers are folded.

    Layers that depend on the timestep and the prompt alone become constants.

    Args:
        network: one float32 tensor in, one out; it is as it was afterwards.
        example: an input ``(1, c, h, w)``; height and width of the model stay open.
    """
    extension = ConversionExtension(OPERATION, _written)
    with warnings.catch_warnings(), torch.no_grad(), _replaced() as replace:
        warnings.simplefilter("ignore")  # Tracing warns of every size that a Python program looks at.
        for name, module in list(network.named_modules()):
            if isinstance(module, FoldedLayer):
                replace(network, name, _mark(module))
            elif isinstance(module, QuantizedAttention):
                for quantizer in ("query", "key", "probability", "value"):
                    replace(module, quantizer, _mark(getattr(module, quantizer)))
        for name, output in constants(network, example).items():
            replace(network, name, _Constant(output))
        traced = torch.jit.trace(network, example, check_trace=False)
        model = ov.convert_model(
            traced, example_input=example, input=[1, example.shape[1], -1, -1], extension=[extension]
        )
    return model


def _mark(module: nn.Module) -> _Marked:
    _modules.append(module)
    return _Marked(module, len(_modules) - 1)


@contextmanager
def _replaced() -> Iterator[Callable[[nn.Module, str, nn.Module], None]]:
    """Within, modules can be replaced: by owner, name and substitute. They come back afterwards."""
    originals: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(owner: nn.Module, name: str, substitute: nn.Module) -> None:
        originals.append((owner, name, owner.get_submodule(name)))
        owner.set_submodule(name, substitute)

    try:
        yield replace
    finally:
        for owner, name, module in reversed(originals):
            owner.set_submodule(name, module)
        _modules.clear()


def constants(network: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Outputs of the marked layers whose input is the same whatever the network's is, by name."""
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _Marked) and isinstance(module.original, FoldedLayer)
    }
    seen: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    same: set[str] = set()

    def first(name: str, x: Tensor) -> None:
        seen[name] = x

    def second(name: str, x: Tensor) -> None:
        if torch.equal(x, seen.pop(name)):
            same.add(name)

    def computed(name: str, x: Tensor) -> Tensor | None:
        if name in same:
            outputs[name] = layers[name].original(x)
            layers[name].original.dequantized = None  # Not kept: there may be a gigabyte of them.
        return outputs.get(name)

    for x, look in ((example, first), (1 - example, second), (example, computed)):
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, name=name, look=look: look(name, inputs[0]))
            for name, layer in layers.items()
        ]
        network(x)
        for hook in hooks:
            hook.remove()
    return outputs


def _written(node: Any) -> list[ov.Output]:
    """The operations of a marked module."""
    x, module = node.get_input(0), _modules[int(node.get_values_from_const_input(1))]
    return [quantized(x, module, 0).dequantized() if isinstance(module, Quantizer) else layer_output(module, x)]
