"""A network as a compiled OpenVINO model that stands in for the torch module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.normalization import write_out_norms
from quantsr.deploy.openvino.packed import expand
from quantsr.deploy.openvino.statistics import MEASURE, GraphStatistics, variant

KEPT = 2
"""Compiled models that are kept: of a tile's size, measuring and applying statistics."""


class CompiledNetwork(nn.Module):
    """An OpenVINO model of one input and one output, compiled for every size that it meets.

    Args:
        model: batch 1, height and width open; its packed weights are expanded.
        precision: of what is not quantized: ``bf16``, ``f32``, or ``auto`` for bf16 where the processor computes in it.
        config: of the module that it stands in for.
        wrap: whether to return a tuple, as diffusers' UNet does.
    """

    def __init__(self, model: ov.Model, precision: str = "auto", config: Any = None, wrap: bool = False):
        super().__init__()
        expand(model)
        self.model, self.config, self.wrap = model, config, wrap
        self.precision = fast_precision() if precision == "auto" else precision
        self._variant: tuple[str | None, list[np.ndarray]] = (None, [])
        self._compiled: dict[tuple[Any, ...], ov.CompiledModel] = {}

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        # The timestep and the prompt are constants in the model.
        y = torch.cat([self._run(image) for image in x.float().cpu().split(1)])
        return (y,) if self.wrap else y

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

    def _run(self, x: Tensor) -> Tensor:
        kind, inputs = self._variant
        found = self.compiled(tuple(x.shape), kind)([x.contiguous().numpy(), *inputs], share_inputs=True)
        if kind == MEASURE:
            for number, past in enumerate(inputs):
                past[:] = found[number + 1]
        return torch.from_numpy(np.array(found[0], dtype=np.float32))

    def compiled(self, shape: tuple[int, ...], kind: str | None = None) -> ov.CompiledModel:
        """The model for inputs of a shape; of a kind that takes statistics, or as it is."""
        if (shape, kind) not in self._compiled:
            while len(self._compiled) >= KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            model = self.model.clone() if kind is None else variant(self.model, kind)
            # Moments of large maps are worth no less than float32.
            precision = "f32" if kind == MEASURE else self.precision
            self._compiled[shape, kind] = compile_model(model, shape, precision)
        return self._compiled[shape, kind]


def fast_precision() -> str:
    """``bf16`` where the processor computes in it, else ``f32``."""
    return "bf16" if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def compile_model(model: ov.Model, shape: tuple[int, ...], precision: str) -> ov.CompiledModel:
    """A model for one size of its first input, on as many threads as torch has.

    Args:
        model: is reshaped, and its group norms written out.
        shape: of the input.
        precision: of what is not quantized, ``bf16`` or ``f32``.
    """
    model.reshape({model.input(0): list(shape)})
    write_out_norms(model)
    options = {
        # Without the hint, what is not quantized runs in float32.
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core().compile_model(model, "CPU", options)
