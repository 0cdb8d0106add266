"""Whole layers on the Triton kernels give what they give on the reference."""

import pytest
import torch
from torch import nn

from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.integer import IntegerLayer
from tests.quant.layers import make
from tests.quant.test_integer import METHODS

LAYERS = {
    "linear": (lambda: nn.Linear(13, 6), (2, 5, 13)),
    "conv2d": (lambda: nn.Conv2d(13, 6, 3, stride=2, padding=1), (2, 13, 6, 5)),
    "conv1x1": (lambda: nn.Conv2d(13, 6, 1), (2, 13, 4, 3)),
}


def calibrate(layer: nn.Module, x: torch.Tensor) -> nn.Module:
    for observation in ("observe_smoothing", "observe_ranges"):
        with mode(layer, observation), torch.no_grad():
            layer(x)
        settle(layer)
    return layer


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize(("module", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_methods(device, module, shape, options, bits):
    x = torch.randn(shape) + 0.3
    folded = FoldedLayer.of(make(module().requires_grad_(False), x, options, calibrate, bits=bits))
    expected = IntegerLayer(folded, backend="reference")(x)
    y = IntegerLayer(folded.to(device), backend="triton")(x.to(device)).cpu()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
