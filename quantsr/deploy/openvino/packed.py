"""Constants of a model, as small on disk as they can be, and as the plugin needs them to multiply in integers.

A weight that was packed is  scale * (codes - zero_point)  with codes of 2, 4 or 8 bits: OpenVINO's own pattern for
compressed weights. Read as it is, the plugin would turn it into floats; with int8 numbers in place of
codes - zero_point it takes the integer path.
"""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch
from openvino import Output
from torch import Tensor

from quantsr.deploy.openvino.quantize import constant
from quantsr.deploy.pack import pack_bits, unpack_bits

TYPES = {2: ov.Type.u2, 4: ov.Type.u4, 8: ov.Type.u8}
"""What packs as our own artefact does; other widths take the next larger one: OpenVINO's u3 and u6 are laid out
otherwise."""
EXACT_IN_HALF = 2048
"""The magnitude up to which float16 has all whole numbers."""
SHORT = {torch.float16: ov.Type.f16, torch.bfloat16: ov.Type.bf16}


def packed_codes(codes: Tensor, zero_point: Tensor, bits: int) -> Output:
    """codes - zero_point as float32, stored in ``bits`` bits or the next larger type.

    Args:
        codes: uint8 ``(out, ...)``.
        zero_point: broadcastable over ``codes``, whole numbers.
        bits: 2 to 8.
    """
    width = next(width for width in TYPES if width >= bits)
    tensor = ov.Tensor(TYPES[width], ov.Shape(list(codes.shape)))
    tensor.data.reshape(-1)[:] = pack_bits(codes, width).numpy()
    shift = op.constant(zero_point.numpy().astype(np.float32))
    return op.subtract(op.convert(op.constant(tensor), np.float32), shift).output(0)


def expand(model: ov.Model, largest: int) -> None:
    """Put int8 constants in place of packed codes and their zero points, in place.

    Args:
        model: with packed codes.
        largest: magnitude up to which int8 will do; weights beyond it become constants in floating point, as do
            their products then.
    """
    names = {kind.get_type_name(): width for width, kind in TYPES.items()}
    for convert in list(model.get_ordered_ops()):
        if convert.get_type_name() != "Convert" or convert.input_value(0).get_node().get_type_name() != "Constant":
            continue
        source = convert.input_value(0).get_node()
        width = names.get(source.get_element_type().get_type_name())
        if width is None:
            continue
        packed = torch.from_numpy(np.array(source.data).reshape(-1).view(np.uint8))
        values = unpack_bits(packed, width, list(source.get_shape())).numpy().astype(np.float32)
        for user in list(convert.output(0).get_target_inputs()):
            subtract = user.get_node()
            if subtract.get_type_name() == "Subtract":
                zero_point = subtract.input_value(1).get_node().data
                subtract.output(0).replace(_numbers(values - zero_point, largest))
            else:  # A zero point of 0 has been optimized away.
                user.replace_source_output(_numbers(values, largest))


def _numbers(values: np.ndarray, largest: int) -> Output:
    """Whole numbers as float32, from int8 where they fit and none is beyond ``largest``, else from floats."""
    magnitude = np.abs(values).max()
    if magnitude > EXACT_IN_HALF:  # As a zero point far off makes them.
        return constant(values)
    kind = np.int8 if magnitude <= largest and values.max() < 128 else np.float16
    return op.convert(op.constant(values.astype(kind)), np.float32).output(0)


def shorten(model: ov.Model) -> None:
    """Store float32 matrices and kernels in 16 bits where that loses nothing, in place; vectors are not worth it."""
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        if node.data.size == max(node.data.shape, default=1):
            continue
        values = torch.from_numpy(np.array(node.data))
        for dtype, kind in SHORT.items():
            short = values.to(dtype)
            if torch.equal(short.float(), values):
                content = short.contiguous().view(torch.uint8).numpy()
                tensor = ov.Tensor(kind, ov.Shape(list(values.shape)))
                tensor.data.view(np.uint8)[:] = content.reshape(tensor.data.view(np.uint8).shape)
                node.output(0).replace(op.convert(op.constant(tensor), np.float32).output(0))
                break
