"""Codes take as many bits on disk as OpenVINO has types for, and become int8 numbers when they are to run."""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.packed import expand, packed_codes, shorten

WIDTH = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}


def value_of(model: ov.Model) -> np.ndarray:
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]


def constants(model: ov.Model) -> list[ov.Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


@pytest.mark.parametrize("shape", [(6, 8), (5, 7, 3, 3)], ids=["linear", "odd_convolution"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_come_back_from_disk(tmp_path, bits, shape):
    codes = torch.randint(2**bits, shape).to(torch.uint8)
    zero_point = torch.randint(2**bits, (shape[0], *[1] * (len(shape) - 1))).float().clamp(max=127)
    model = ov.Model([packed_codes(codes, zero_point, bits)], [])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    loaded = core().read_model(tmp_path / "model.xml")
    expected = (codes - zero_point).numpy()
    assert np.array_equal(value_of(loaded), expected)
    (stored,) = (c for c in constants(loaded) if c.get_element_type().get_type_name().startswith("u"))
    assert stored.get_byte_size() == -(-codes.numel() * WIDTH[bits] // 8)
    expand(loaded, 128)
    assert np.array_equal(value_of(loaded), expected)


@pytest.mark.parametrize(
    ("codes", "zero_point", "kind"),
    [(255, 128, "i8"), (0, 128, "i8"), (255, 100, "f16"), (3, 2052, "f32"), (3, 40000, "f32"), (3, -40000, "f32")],
)
def test_what_fits_is_expanded_to_int8_and_the_rest_loses_nothing(codes, zero_point, kind):
    packed = packed_codes(torch.full((4, 4), codes, dtype=torch.uint8), torch.full((4, 1), float(zero_point)), 8)
    model = ov.Model([packed], [])
    expand(model, 128)
    assert [c.get_element_type().get_type_name() for c in constants(model)] == [kind]
    assert (value_of(model) == codes - zero_point).all()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (torch.randn(64, 32).half().float(), "f16"),
        ((1e-20 * torch.randn(64, 32)).bfloat16().float(), "bf16"),
        (torch.randn(64, 32), "f32"),
        (torch.ones(2048, 1), "f32"),
    ],
    ids=["half", "bfloat16", "neither", "vector"],
)
def test_constants_are_shortened_where_nothing_is_lost(values, kind):
    model = ov.Model([op.multiply(op.constant(values.numpy()), op.constant(np.float32(1)))], [])
    before = value_of(model)
    shorten(model)
    assert kind in {c.get_element_type().get_type_name() for c in constants(model) if c.get_shape() != []}
    assert np.array_equal(value_of(model), before)
