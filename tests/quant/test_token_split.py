"""The token split: halves of axis 1 have bounds of their own, however long it is."""

import pytest
import torch
from torch import nn

from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec
from quantsr.quant.token_split import TokenSplitQuantizer

RECIPE = LayerRecipe(
    AffineSpec(4, granularity="channel"), AffineSpec(4, momentum=None), channel_split=True, token_split=True
)


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 7, 3), (1, 1, 3), (4, 5)], ids=str)
def test_halves_are_quantized_by_themselves(shape):
    spec, x = AffineSpec(4), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    lower, upper = torch.tensor([-1.0, -0.25]), torch.tensor([2.0, 0.5])
    split = TokenSplitQuantizer(spec)
    split.set_bounds(lower, upper)
    middle = shape[1] // 2
    for half, piece in enumerate((slice(0, middle), slice(middle, None))):
        alone = Quantizer(spec)
        alone.set_bounds(lower[half : half + 1], upper[half : half + 1])
        assert torch.equal(split(x)[:, piece], alone(x[:, piece]))
        assert torch.equal(split.quantize(x)[:, piece], alone.quantize(x[:, piece]))


def test_layer_calibrates_and_folds():
    module, x = nn.Linear(6, 4).requires_grad_(False), torch.randn(2, 5, 6)
    layer = QuantizedLayer(module, RECIPE)
    with mode(layer, "observe_ranges"):
        layer(x)
    settle(layer)
    assert layer.input_quantizer.lower.tolist() == [x[:, :2].min().item(), x[:, 2:].min().item()]
    assert torch.allclose(FoldedLayer.of(layer)(x[:, :3]), layer(x[:, :3]), atol=1e-6)


def test_the_weight_has_to_be_split_too():
    with pytest.raises(ValueError, match="give channel_split too"):
        LayerRecipe(AffineSpec(4, granularity="channel"), AffineSpec(4), token_split=True)
