"""Group norms of an OpenVINO model with the statistics of a whole map: :mod:`quantsr.normalization` for a graph.

Two variants of a model take the statistics as inputs. One measures: every norm joins those of its tile with what it is
given, normalizes by the two together and puts them out. One applies: every norm is a scale and a shift per channel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
import openvino.opset13 as op
from openvino import Node, Output

from quantsr.deploy.openvino.quantize import constant

if TYPE_CHECKING:
    from quantsr.deploy.openvino.networks import CompiledNetwork

MEASURE, APPLY = "measure", "apply"


class GraphStatistics:
    """What :class:`quantsr.normalization.SharedStatistics` is for torch modules, for a compiled network."""

    def __init__(self, network: "CompiledNetwork"):
        self.network = network
        self.norms = norms(network.model)
        # Count, mean and variance of every group.
        self.moments = [np.zeros((3, norm.get_attributes()["num_groups"]), np.float32) for norm in self.norms]

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Within, tiles that go through the network are taken into the statistics."""
        with self.network.variant(MEASURE, self.moments):
            yield

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the norms use the statistics instead of their input's."""
        inputs = [affine(norm, moments) for norm, moments in zip(self.norms, self.moments, strict=True)]
        with self.network.variant(APPLY, inputs):
            yield


def norms(model: ov.Model) -> list[Node]:
    """The group norms of a model, in order."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "GroupNormalization"]


def affine(norm: Node, moments: np.ndarray) -> np.ndarray:
    """Scale and shift ``(2, channels)`` of a norm with known count, mean and variance ``(3, groups)``."""
    gain, bias = (norm.input_value(number).get_node().data.reshape(-1) for number in (1, 2))
    _, mean, variance = (np.repeat(row, len(gain) // len(row)) for row in moments)
    scale = gain / np.sqrt(variance + norm.get_attributes()["epsilon"])
    return np.stack([scale, bias - mean * scale]).astype(np.float32)


def variant(model: ov.Model, kind: str) -> ov.Model:
    """A model that takes an input for every group norm, after its own: statistics to add to, or what to apply.

    Args:
        model: stays as it is.
        kind: ``measure`` (inputs and further outputs: count, mean, variance, ``(3, groups)``) or ``apply`` (inputs:
            scale and shift, ``(2, channels)``).
    """
    model = model.clone()
    rewrite: Callable[[Node], tuple[Node, Output, Output | None]] = {MEASURE: _measuring, APPLY: _applying}[kind]
    parameters, outputs = [], []
    for norm in norms(model):
        parameter, normalized, joined = rewrite(norm)
        parameters.append(parameter)
        if joined is not None:
            outputs.append(op.result(joined))
        norm.output(0).replace(normalized)
    return ov.Model([*model.get_results(), *outputs], [*model.get_parameters(), *parameters])


def _measuring(norm: Node) -> tuple[Node, Output, Output]:
    x, gain, bias = (norm.input_value(number) for number in range(3))
    groups = norm.get_attributes()["num_groups"]
    past = op.parameter([3, groups], np.float32)
    flat = op.reshape(x, constant([groups, -1], np.int64), False)
    own_mean = op.reduce_mean(flat, constant([1], np.int64), True)
    centred = op.subtract(flat, own_mean)
    own_variance = op.reduce_mean(op.multiply(centred, centred), constant([1], np.int64), True)
    size = op.gather(op.shape_of(flat, output_type="i64"), constant([1], np.int64), constant(0, np.int64))
    own_count = op.broadcast(op.convert(size, np.float32), constant([groups], np.int64))

    def row(values: Output | Node) -> Output:
        return op.reshape(values, constant([1, groups], np.int64), False).output(0)

    # Means and variances are joined, not sums of squares: their small differences are lost in float32.
    count, mean, variance = op.split(past, constant(0, np.int64), 3).outputs()
    n, m, v = row(own_count), row(own_mean), row(own_variance)
    total = op.add(count, n)
    share, difference = op.divide(n, total), op.subtract(m, mean)
    new_mean = op.add(mean, op.multiply(difference, share))
    between = op.multiply(op.multiply(difference, difference), op.multiply(share, op.subtract(constant(1.0), share)))
    new_variance = op.add(op.add(variance, op.multiply(op.subtract(v, variance), share)), between)
    joined = op.concat([total, new_mean, new_variance], 0)

    epsilon = constant(norm.get_attributes()["epsilon"])
    deviation = op.sqrt(op.add(op.reshape(new_variance, constant([groups, 1], np.int64), False), epsilon))
    centre = op.reshape(new_mean, constant([groups, 1], np.int64), False)
    normalized = op.divide(op.subtract(flat, centre), deviation)
    like_x = op.reshape(normalized, op.shape_of(x, output_type="i64"), False)
    y = op.add(op.multiply(like_x, _per_channel(gain, x)), _per_channel(bias, x))
    return past, y.output(0), joined.output(0)


def _applying(norm: Node) -> tuple[Node, Output, None]:
    x, gain = norm.input_value(0), norm.input_value(1)
    given = op.parameter([2, gain.get_partial_shape()[0].get_length()], np.float32)
    scale, shift = op.split(given, constant(0, np.int64), 2).outputs()
    return given, op.add(op.multiply(x, _per_channel(scale, x)), _per_channel(shift, x)).output(0), None


def _per_channel(values: Output, x: Output) -> Output:
    """``(c,)`` or ``(1, c)`` as it broadcasts over ``(1, c, ...)``."""
    rank = x.get_partial_shape().rank.get_length()
    return op.reshape(values, constant([1, -1, *[1] * (rank - 2)], np.int64), False).output(0)
