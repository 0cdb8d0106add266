"""What reconstructing a model block by block needs: kept examples, weights quantized alone, an error."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from quantsr.methods.borders import Call
from quantsr.methods.stages import Batch
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.calibrate import mode, quantized_modules
from quantsr.quant.layer import QuantizedLayer


class Kept:
    """The batches that a stage trains on, and what they look like at the border of its block.

    Args:
        stage: its number.
        batches: ``lq``, and the fields of :class:`Noisy` where there are any.
    """

    def __init__(self, stage: int = -1, batches: list[Batch] | None = None):
        self.stage, self.batches = stage, batches or []
        self.examples: dict[int, tuple[Call, Tensor]] = {}


@contextmanager
def weights_only(model: nn.Module) -> Iterator[None]:
    """Layers quantize their weights alone; inputs and attention products are in full precision.

    In plain autograd: nothing is computed again in the backward pass, which may come after this context.
    """
    layers = [module for _, module in quantized_modules(model) if isinstance(module, QuantizedLayer)]
    attentions = nn.ModuleList(m for _, m in quantized_modules(model) if isinstance(m, QuantizedAttention))

    def forward(layer: QuantizedLayer):
        return lambda x: layer.operation(x, layer.quantized_weight(), layer.bias)

    for layer in layers:
        layer.forward = forward(layer)  # type: ignore[method-assign]
    try:
        with mode(attentions, "full_precision"):
            yield
    finally:
        for layer in layers:
            del layer.forward


def power_error(own: Tensor, target: Tensor, power: float) -> Tensor:
    """|own - target|^power, summed over the channels (axis 1), averaged over everything else."""
    return (own.float() - target.float()).abs().pow(power).sum(1).mean()
