"""A network as a compiled OpenVINO model that stands in for the torch module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.normalization import write_out_norms
from quantsr.deploy.openvino.overflow import avoid_overflow, largest_weight
from quantsr.deploy.openvino.packed import expand
from quantsr.deploy.openvino.statistics import MEASURE, GraphStatistics, variant

KEPT = 2
"""Compiled models that are kept: of a tile's size, measuring and applying statistics."""


class CompiledNetwork(nn.Module):
    """An OpenVINO model, compiled for every size that it meets.

    Args:
        model: height and width open, of as many images or frames at a time as it was converted with; its packed weights
            are expanded.
        precision: of what is not quantized: ``bf16``, ``f32``, or ``auto`` for bf16 where the processor computes in it.
        config: of the module that it stands in for.
        wrap: whether to return a tuple, as diffusers' UNet does.
    """

    def __init__(self, model: ov.Model, precision: str = "auto", config: Any = None, wrap: bool = False):
        super().__init__()
        expand(model, largest_weight())
        self.model, self.config, self.wrap = model, config, wrap
        self.batch, self.outputs = model.input(0).get_partial_shape()[0].get_length(), len(model.outputs)
        self.precision = fast_precision() if precision == "auto" else precision
        self._variant: tuple[str | None, list[np.ndarray]] = (None, [])
        self._compiled: dict[tuple[Any, ...], ov.CompiledModel] = {}

    def forward(self, *given: Tensor | Sequence[Tensor], **_: Any) -> Any:
        """What the module computes, of its tensors or sequences of them.

        Those that are constant in the model, such as the prompt, come last or by name, and are not looked at.
        """
        tensors = [t for one in given for t in (one if isinstance(one, Sequence) else [one])]
        pieces = [t.float().cpu().split(self.batch) for t in tensors[: len(self.model.inputs)]]
        found = [self._run(piece) for piece in zip(*pieces, strict=True)]
        outputs = [torch.cat(column) for column in zip(*found, strict=True)]
        if self.wrap:
            return tuple(outputs)
        return outputs if self.outputs > 1 else outputs[0]

    def shared_statistics(self) -> GraphStatistics:
        """For tiles of one map, see :func:`quantsr.normalization.by_tiles`."""
        return GraphStatistics(self)

    @contextmanager
    def variant(self, kind: str, inputs: list[np.ndarray]) -> Iterator[None]:
        """Within, run a variant of :func:`quantsr.deploy.openvino.statistics.variant`; ``inputs`` are updated by it."""
        self._variant = (kind, inputs)
        try:
            yield
        finally:
            self._variant = (None, [])

    def _run(self, piece: Sequence[Tensor]) -> list[Tensor]:
        kind, inputs = self._variant
        arrays = [x.contiguous().numpy() for x in piece]
        found = self.compiled([x.shape for x in arrays], kind)([*arrays, *inputs], share_inputs=True)
        if kind == MEASURE:
            for number, past in enumerate(inputs):
                past[:] = found[self.outputs + number]
        return [torch.from_numpy(np.array(found[number], dtype=np.float32)) for number in range(self.outputs)]

    def compiled(self, shapes: Sequence[Sequence[int]], kind: str | None = None) -> ov.CompiledModel:
        """The model for inputs of some shapes; of a kind that takes statistics, or as it is."""
        key = tuple(map(tuple, shapes)), kind
        if key not in self._compiled:
            while len(self._compiled) >= KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            model = self.model.clone() if kind is None else variant(self.model, kind)
            # Moments of large maps are worth no less than float32.
            precision = "f32" if kind == MEASURE else self.precision
            self._compiled[key] = compile_model(model, shapes, precision)
        return self._compiled[key]


def fast_precision() -> str:
    """``bf16`` where the processor computes in it, else ``f32``."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def compile_model(model: ov.Model, shapes: Sequence[Sequence[int]], precision: str) -> ov.CompiledModel:
    """A model for one size of its inputs, on as many threads as torch has.

    Args:
        model: is reshaped, its group norms written out, and what would overflow here made floating.
        shapes: of the first inputs; the others have theirs.
        precision: of what is not quantized, ``bf16`` or ``f32``.
    """
    model.reshape({model.input(number): list(shape) for number, shape in enumerate(shapes)})
    write_out_norms(model)
    avoid_overflow(model)
    options = {
        # Without the hint, what is not quantized runs in float32.
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core().compile_model(model, "CPU", options)
