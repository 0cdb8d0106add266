"""A torch network with folded layers to an OpenVINO model: traced, its quantized parts written out by us."""

import warnings
from contextlib import ExitStack
from typing import Any

import openvino as ov
import torch
from openvino._offline_transformations import apply_moc_transformations, compress_quantize_weights_transformation
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch import ConversionExtension
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from quantsr.deploy.openvino.attention import attention_output
from quantsr.deploy.openvino.layer import layer_output
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer

LAYER, ATTENTION = "quantsr::layer", "quantsr::attention"
_modules: list[nn.Module] = []
"""Of the conversion that is going on, by their number in the traced graph."""


@torch.library.custom_op(LAYER, mutates_args=())
def _layer(x: Tensor, number: int) -> Tensor:
    """One operation in the traced graph for a whole layer; of its output only the shape is needed."""
    module = _modules[number]
    shape = module.operation(*(torch.empty(t.shape, device="meta") for t in (x, module.codes))).shape
    # Cheap, and dependent on the input in a way that no normalization takes out again.
    phase = x.flatten() @ torch.arange(float(x.numel())).sin()
    return (torch.arange(float(shape.numel())) + phase).sin().view(shape)


@torch.library.custom_op(ATTENTION, mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, key_scale: Tensor, number: int) -> Tensor:
    """The same for both products of attention."""
    return q + k.mean() + v.mean()


class _MarkedLayer(nn.Module):
    """A layer as a single operation."""

    def __init__(self, layer: FoldedLayer, number: int):
        super().__init__()
        self.original, self.number = layer, number

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantsr.layer(x, self.number)


class _Constant(nn.Module):
    """A layer whose input never changes."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def convert(network: nn.Module, *example: Tensor) -> ov.Model:
    """An OpenVINO model of a network, with integer products where the network's layers are folded.

    Layers that depend on no input, but on the prompt and perhaps the timestep alone, become constants.

    Args:
        network: float32 tensors in, one or several out; it is as it was afterwards.
        example: inputs; height and width of maps ``(n, c, h, w)`` stay open in the model, all else is as here.
    """
    extensions = [ConversionExtension(LAYER, _written_layer), ConversionExtension(ATTENTION, _written_attention)]
    with warnings.catch_warnings(), torch.no_grad(), ExitStack() as stack:
        warnings.simplefilter("ignore")  # Tracing warns of every size that a Python program looks at.
        stack.callback(_modules.clear)
        for name, module in list(network.named_modules()):
            if isinstance(module, FoldedLayer):
                _replace(stack, network, name, _MarkedLayer(module, _number(module)))
            elif isinstance(module, QuantizedAttention):
                _replace_products(stack, module, _number(module))
        for name, output in constants(network, *example).items():
            _replace(stack, network, name, _Constant(output))
        traced = torch.jit.trace(network, example, check_trace=False)
        return _model(traced, example, extensions)


def _model(traced: Any, example: tuple[Tensor, ...], extensions: list[ConversionExtension]) -> ov.Model:
    """What ``openvino.convert_model`` makes of a traced network.

    That sends usage statistics over the network, the operations among them, and takes several times as long.
    """
    frontend = FrontEndManager().load_by_framework("pytorch")
    for extension in extensions:
        frontend.add_extension(extension)
    decoder = TorchScriptPythonDecoder(traced, example_input=example)  # The frontend does not keep it alive.
    given = frontend.load(decoder)
    for number, x in enumerate(example):
        shape = ov.PartialShape([*x.shape[:2], *[-1] * (x.ndim - 2)])
        given.set_partial_shape(given.get_place_by_input_index(number), shape)
    model = frontend.convert(given)
    apply_moc_transformations(model, cf=False, smart_reshape=True)
    compress_quantize_weights_transformation(model)
    return model


def _number(module: nn.Module) -> int:
    _modules.append(module)
    return len(_modules) - 1


def _replace(stack: ExitStack, owner: nn.Module, name: str, substitute: nn.Module) -> None:
    """Another module in its place until the stack is closed."""
    stack.callback(owner.set_submodule, name, owner.get_submodule(name))
    owner.set_submodule(name, substitute)


def _replace_products(stack: ExitStack, attention: QuantizedAttention, number: int) -> None:
    """One operation in their place."""

    def marked(q: Tensor, k: Tensor, v: Tensor, key_scale: Tensor | None) -> Tensor:
        return torch.ops.quantsr.attention(q, k, v, torch.ones(1) if key_scale is None else key_scale, number)

    stack.callback(delattr, attention, "products")  # The class's own again.
    attention.products = marked  # type: ignore[method-assign]


def constants(network: nn.Module, *example: Tensor) -> dict[str, Tensor]:
    """Outputs of the marked layers whose input is the same whatever the network's inputs are, by name."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _MarkedLayer)}
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

    other = tuple(1 - x for x in example)
    for given, look in ((example, first), (other, second), (example, computed)):
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output, name=name, look=look: look(name, inputs[0]))
            for name, layer in layers.items()
        ]
        network(*given)
        for hook in hooks:
            hook.remove()
    return outputs


def _written_layer(node: Any) -> list[ov.Output]:
    """The operations of a marked layer."""
    return [layer_output(_modules[int(node.get_values_from_const_input(1))], node.get_input(0))]


def _written_attention(node: Any) -> list[ov.Output]:
    """The operations of marked products."""
    attention = _modules[int(node.get_values_from_const_input(4))]
    q, k, v, key_scale = (node.get_input(number) for number in range(4))
    return [attention_output(attention, q, k, v, None if attention.key_scale is None else key_scale)]
