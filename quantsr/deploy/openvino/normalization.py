"""Group norms in operations that suit channels-last maps.

The plugin convolves with channels last, and computes a group norm on planar maps: it turns every map around before and
after. Written out as means per channel, which any layout gives, nothing is turned, and scale and shift join the
activation and the quantizer behind them: a VAE decoder at w8a8 is 10 % faster.
"""

import numpy as np
import openvino as ov
import openvino.opset13 as op
from openvino import Node, Output

from quantsr.deploy.openvino.quantize import constant


def write_out_norms(model: ov.Model) -> None:
    """Replace the group norms of a model of known sizes, in place."""
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() == "GroupNormalization":
            node.output(0).replace(_group_norm(node))


def _group_norm(node: Node) -> Output:
    x, gain, bias = (node.input_value(number) for number in range(3))
    attributes, (count, channels, *spatial) = node.get_attributes(), x.get_shape()
    groups, axes = attributes["num_groups"], _integers(range(2, 2 + len(spatial)))
    ones = [1] * len(spatial)
    per_channel, in_groups = _integers([-1, channels, *ones]), _integers([count, groups, channels // groups])

    def shared(values: Output) -> Output:
        """The mean over each group, at all its channels, of a value per channel."""
        mean = op.reduce_mean(op.reshape(values, in_groups, False), _integers([2]), True)
        return op.reshape(op.multiply(mean, constant(np.ones((1, 1, channels // groups)))), per_channel, False).output(
            0
        )

    # Centred first: bf16 has not the digits for a difference of squares.
    centred = op.subtract(x, shared(op.reduce_mean(x, axes, True).output(0)))
    length = op.reduce_l2(centred, axes, True)
    variance = shared(op.multiply(op.multiply(length, length), constant(1 / np.prod(spatial))).output(0))
    deviation = op.sqrt(op.add(variance, constant(attributes["epsilon"])))
    scale = op.divide(op.reshape(gain, per_channel, False), deviation)
    return op.add(op.multiply(centred, scale), op.reshape(bias, per_channel, False)).output(0)


def _integers(values) -> Output:
    return constant(np.array(list(values)), np.int64)
