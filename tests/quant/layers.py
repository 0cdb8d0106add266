"""Layers of every recipe for the tests of this folder."""

import pytest
import torch
from torch import nn

from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec

ROWS = {"granularity": "channel"}


def recipe(bits: int = 4, kind: str = "minmax", act: dict | None = None, weight: dict = ROWS, **options) -> LayerRecipe:
    """Weights per row and activations per tensor unless said otherwise."""
    weight_spec = AffineSpec(**{"bits": bits, "range": kind, **weight})
    return LayerRecipe(weight_spec, AffineSpec(**{"bits": bits, "range": kind, **(act or {})}), **options)


DYNAMIC, TOKENS = {"range": "dynamic"}, {"range": "dynamic", "granularity": "token"}
FEATURES = {
    "plain": {},
    "smoothing": {"smoothing": 0.3},
    "smoothing_with_offset": {"smoothing": 0.3, "offset": True},
    "rotation": {"rotation": True},
    "low_rank": {"rank": 3},
    "update": {"update_rank": 2},
    "channel_split": {"channel_split": True},
    "groups": {"group_size": 4},
    "bias_alignment": {"bias_alignment": True},
    "split_rotations": {"rotation": True, "channel_split": True},
    "rotation_in_groups": {"rotation": True, "group_size": 4},
    "dynamic": {"act": DYNAMIC},
    "tokens": {"act": TOKENS},
    "quantized_bias": {"quantize_bias": True},
    "all_at_once": {
        "smoothing": 0.3,
        "offset": True,
        "rotation": True,
        "rank": 2,
        "update_rank": 2,
        "channel_split": True,
        "bias_alignment": True,
    },
}
EVERY_FEATURE = pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())


def disturb(layer: QuantizedLayer) -> QuantizedLayer:
    """Move offset and low-rank branch off their start, as training does; the layer stays exact."""
    with torch.no_grad():
        if layer.offset is not None:
            layer.offset.normal_()
        if layer.low_rank is not None:
            layer.low_rank.L1.add_(0.1 * torch.randn_like(layer.low_rank.L1))
    return layer


def make(module, x, options, calibrate, **more) -> QuantizedLayer:
    """A calibrated layer whose offset is no longer 0; ranges fit."""
    layer = QuantizedLayer(module, recipe(**{**options, **more}))
    disturb(layer)
    return calibrate(layer, x).requires_grad_(False)


def train_everything(layer: QuantizedLayer) -> list[nn.Parameter]:
    """Let all train but the module's own weight and bias."""
    if layer.update is not None:  # At 0 it gives its other factor no gradient.
        torch.nn.init.normal_(layer.update.F1, std=0.1)
    parameters = [p for name, p in layer.named_parameters() if name not in ("weight", "bias")]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


LEARNED = {
    "learned_bounds": {"kind": "learned"},
    "learned_steps": {"kind": "step", "weight": {**ROWS, "symmetric": True}},
    "weight_per_tensor": {"kind": "learned", "weight": {}},
    "symmetric": {"kind": "learned", "weight": {**ROWS, "symmetric": True}},
    "groups": {"kind": "learned", "group_size": 4},
    "smoothing_with_offset": {"kind": "learned", "smoothing": 0.3, "offset": True},
    "smoothing_with_offset_split": {"kind": "learned", "smoothing": 0.3, "offset": True, "channel_split": True},
    "smoothing_and_low_rank": {"kind": "learned", "smoothing": 0.3, "rank": 2},
    "low_rank_and_update": {"kind": "learned", "smoothing": 0.3, "rank": 2, "update_rank": 3},
    "smoothing_of_static_ranges": {"smoothing": 0.3, "offset": True},
    "rotation_and_low_rank": {
        "rotation": True,
        "rank": 2,
        "channel_split": True,
        "act": DYNAMIC,
        "bias_alignment": True,
    },
    "tokens_and_learned_weights": {"kind": "learned", "act": TOKENS},
    "everything": {"kind": "learned", **FEATURES["all_at_once"]},
}
EVERY_LEARNER = pytest.mark.parametrize("options", LEARNED.values(), ids=LEARNED.keys())
