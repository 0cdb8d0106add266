"""Methods that decide about layers by sums over their inputs: a search's errors, GPTQ's second moments.

Sums are taken batch by batch: inputs are not stored.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quantsr.methods.distributed import several_devices
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Batch, Stage
from quantsr.quant.calibrate import mode, set_mode
from quantsr.quant.gptq import round_layer, second_moment
from quantsr.quant.layer import QuantizedLayer

Note = Callable[[str, QuantizedLayer, Tensor], Tensor]
"""(name, layer, input) to what is summed."""
Conclusion = Callable[[str, QuantizedLayer, Tensor], None]
"""(name, layer, sum over all calibration data) to a changed layer."""


class BlockwiseMethod(QuantizationMethod):
    """A method with stages that sum over the inputs of layers. Sums are part of its checkpoints."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.sums: dict[str, Tensor] = {}

    def sum_stage(
        self,
        name: str,
        steps: int,
        blocks: Sequence[str],
        note: Note,
        conclude: Conclusion,
        quantized: Sequence[str] = (),
    ) -> Stage:
        """A stage that decides about the layers of some blocks.

        Args:
            name: of the stage.
            steps: batches that a sum is over.
            blocks: by name.
            note: called for every input of every layer of them.
            conclude: called for every layer of them in the end.
            quantized: blocks that run quantized meanwhile; the rest of the student runs in full precision.
        """
        layers = {name: layer for block in blocks for name, layer in self.layers_of(block).items()}
        step = partial(self._sum, layers, note, quantized)
        return Stage(name, steps, step, finish=partial(self._finish, layers, conclude))

    @property
    def blocks(self) -> list[str]:
        """The blocks of the quantized parts that have quantized layers."""
        return [block for block in super().blocks if self.layers_of(block)]

    def gptq_stages(self, steps: int) -> list[Stage]:
        """GPTQ of one block after the other, on inputs from a student that is quantized as far as it has come.

        A stage for every block, because a second moment is the square of a layer's inputs in size.
        """

        def note(name: str, layer: QuantizedLayer, x: Tensor) -> Tensor:
            return second_moment(layer, x)

        def conclude(name: str, layer: QuantizedLayer, total: Tensor) -> None:
            round_layer(layer, total)

        blocks = self.blocks
        return [
            self.sum_stage(f"gptq {block}", steps, [block], note, conclude, quantized=blocks[:number])
            for number, block in enumerate(blocks)
        ]

    def layers_of(self, block: str) -> dict[str, QuantizedLayer]:
        """The quantized layers of a block, or the one that it is, by their names in the student."""
        inside = self.student.get_submodule(block).named_modules(prefix=block)
        return {name: module for name, module in inside if isinstance(module, QuantizedLayer)}

    @torch.no_grad()
    def _sum(self, layers: dict[str, QuantizedLayer], note: Note, quantized: Sequence[str], batch: Batch) -> None:
        found: dict[str, Tensor] = {}

        def look(name: str, layer: QuantizedLayer, inputs: tuple[Tensor, ...]) -> None:
            new = note(name, layer, inputs[0])
            found[name] = found[name].add_(new) if name in found else new

        handles = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
        try:
            with mode(self.student, "full_precision"):
                for block in quantized:
                    set_mode(self.student.get_submodule(block), "quantized")
                self.student.predict(batch["lq"], self.noisy(batch))
        finally:
            for handle in handles:
                handle.remove()
        for name, new in found.items():
            new = joined_sum(new)
            self.sums[name] = self.sums[name].to(new.device).add_(new) if name in self.sums else new

    def _finish(self, layers: dict[str, QuantizedLayer], conclude: Conclusion) -> None:
        for name, layer in layers.items():
            conclude(name, layer, self.sums[name])
        self.sums = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["quantsr"]["sums"] = self.sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.sums = dict(checkpoint["quantsr"]["sums"])


def joined_sum(values: Tensor) -> Tensor:
    """Element-wise sum over all devices of the run."""
    if several_devices():
        dist.all_reduce(values)
    return values
