"""The inference form computes what the trained form does: codes are the same, what training kept apart is merged."""

import pytest
import torch

from quantsr.quant.calibrate import quantized_modules
from quantsr.quant.folded import FoldedLayer, fold
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import EVERY_FEATURE, FEATURES, make, recipe

QARTSR = {"kind": "learned", "smoothing": 0.5, "rank": 3, "update_rank": 2}


def trained(module, x, options, calibrate, **more) -> QuantizedLayer:
    """A layer as training leaves it: the update is no longer 0."""
    layer = make(module, x, options, calibrate, **more)
    if layer.update is not None:
        torch.nn.init.normal_(layer.update.F1, std=0.1)
    return layer


@pytest.mark.parametrize("options", [*FEATURES.values(), QARTSR], ids=[*FEATURES, "qartsr"])
def test_both_forms_give_the_same_output(module_and_input, calibrate, monkeypatch, options):
    """To float error, with the low-rank branch in float32."""
    monkeypatch.setattr("quantsr.quant.folded.BRANCH", torch.float32)
    module, x = module_and_input
    layer = trained(module, x, options, calibrate)
    y, expected = FoldedLayer.of(layer)(x), layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@EVERY_FEATURE
def test_codes_stand_for_the_quantized_weight(module_and_input, calibrate, options):
    module, x = module_and_input
    layer = trained(module, x, options, calibrate)
    folded = FoldedLayer.of(layer)
    assert folded.codes.dtype == torch.uint8 and folded.codes.max() <= 2**layer.recipe.weight.bits - 1
    torch.testing.assert_close(folded.weight, layer.quantized_weight(), rtol=1e-6, atol=1e-7)


def test_the_branch_takes_the_transformed_input_in_16_bits(image_layer, calibrate):
    """L2 / phi, as phi x is all that an inference layer is given."""
    module, x = image_layer
    layer = trained(module, x, QARTSR, calibrate)
    folded = FoldedLayer.of(layer)
    assert folded.L1.dtype == folded.L2.dtype == torch.float16
    down = layer.low_rank.down * layer.smoothing.scale[:, None, None]
    torch.testing.assert_close(folded.L2.float(), down, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-2, atol=1e-2)


@EVERY_FEATURE
def test_the_state_makes_an_equal_layer(image_layer, calibrate, options):
    module, x = image_layer
    folded = FoldedLayer.of(trained(module, x, options, calibrate))
    empty = FoldedLayer(folded.operation, folded.codes.shape, folded.recipe, has_bias=True)
    empty(x.double().float())  # What it made of its empty state is forgotten.
    empty.load_state_dict(folded.state_dict())
    assert torch.equal(empty(x), folded(x))


def test_nothing_of_the_original_weight_is_kept(image_layer, calibrate):
    module, x = image_layer
    folded = FoldedLayer.of(trained(module, x, FEATURES["all_at_once"], calibrate))
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(t.data_ptr() == module.weight.data_ptr() for t in folded.state_dict().values())


def test_folding_leaves_the_layer_as_it_was(image_layer, calibrate):
    module, x = image_layer
    layer = trained(module, x, QARTSR, calibrate)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    FoldedLayer.of(layer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_every_layer_of_a_model_is_folded(calibrate):
    layers = [QuantizedLayer(torch.nn.Linear(8, 8).requires_grad_(False), recipe(**QARTSR)) for _ in range(2)]
    model = calibrate(torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1]), torch.randn(4, 8))
    assert fold(model) is model
    assert [type(module) for module in model] == [FoldedLayer, torch.nn.SiLU, FoldedLayer]
    assert not list(quantized_modules(model))


def test_an_uncalibrated_layer_is_refused(image_layer):
    module, _ = image_layer
    with pytest.raises(ValueError, match="must be calibrated before it is folded"):
        FoldedLayer.of(QuantizedLayer(module, recipe()))
