"""Layers of a model in 16 bits: the weight's codes are those of float32, rotation and products are in 16 bits."""

from copy import deepcopy

import pytest
import torch

from quantsr.quant.calibrate import mode
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import EVERY_FEATURE, EVERY_LEARNER, disturb, make, recipe, train_everything

pytestmark = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def rounded(module, x, dtype):
    """Module and input whose values both types can hold."""
    return module.to(dtype).float(), x.to(dtype).float()


@EVERY_FEATURE
def test_a_layer_gives_its_inputs_type_and_the_float32_result(module_and_input, calibrate, options, dtype):
    module, x = rounded(*module_and_input, dtype)
    full = make(module, x, options, calibrate)
    short = QuantizedLayer(deepcopy(module).to(dtype), recipe(**options))
    own = {name: tensor for name, tensor in full.state_dict().items() if name not in ("weight", "bias")}
    short.load_state_dict(own, strict=False)
    expected = full(x)
    for layer in (short, FoldedLayer.of(short)):
        found = layer(x.to(dtype))
        assert found.dtype == dtype
        # Sixteen-bit factors are off by 2^-9 each; rotated in 16 bits, a few inputs end up one of 15 steps away.
        allowed = 0.05 if "rotation" in options else 0.02
        assert (found.float() - expected).square().mean().sqrt() < allowed * expected.square().mean().sqrt()
    assert torch.equal(short.weight_codes(), full.weight_codes())
    with mode(short, "full_precision"):
        assert short(x.to(dtype)).dtype == dtype


@EVERY_LEARNER
def test_what_trains_gets_float32_gradients(module_and_input, calibrate, options, dtype):
    module, x = rounded(*module_and_input, dtype)
    layer = calibrate(disturb(QuantizedLayer(module.to(dtype), recipe(**options))), x.to(dtype)).requires_grad_(False)
    learner = x.to(dtype).requires_grad_()
    parameters = train_everything(layer)
    layer(learner).float().square().sum().backward()
    assert learner.grad.dtype == dtype and learner.grad.any()
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}
