"""Group norms written out compute what the operation computes."""

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
import torch.nn.functional as F

from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.normalization import write_out_norms
from quantsr.deploy.openvino.quantize import constant

CHANNELS, GROUPS = 12, 4


@pytest.mark.parametrize("spatial", [(9, 6), (50,)], ids=["map", "tokens"])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (20, 0.5), (0, 0)])
def test_every_group_is_normalized_by_its_own_moments(spatial, mean, deviation):
    generator = torch.Generator().manual_seed(0)
    x = mean * torch.arange(1, CHANNELS + 1).view(1, -1, *[1] * len(spatial))
    x = x + deviation * torch.randn(1, CHANNELS, *spatial, generator=generator)
    gain, bias = torch.randn(2, CHANNELS, generator=generator)
    parameter = op.parameter(list(x.shape), np.float32)
    model = ov.Model([op.group_normalization(parameter, constant(gain), constant(bias), GROUPS, 1e-5)], [parameter])
    write_out_norms(model)
    assert "GroupNormalization" not in {node.get_type_name() for node in model.get_ordered_ops()}
    found = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    expected = F.group_norm(x.float(), GROUPS, gain, bias, 1e-5)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)
