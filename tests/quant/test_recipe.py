import pytest

from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec

DYNAMIC = AffineSpec(8, range="dynamic")
ROW = AffineSpec(8, granularity="channel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_split": True, "group_size": 4}, "give one of them"),
        ({"weight": DYNAMIC}, "weights have static bounds"),
        ({"act": ROW}, "a scale per channel is smoothing"),
        ({"offset": True}, "an offset is part of smoothing"),
    ],
    ids=["two_cuts", "dynamic_weight", "activation_channels", "lone_offset"],
)
def test_contradictions_of_a_layer_recipe_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LayerRecipe(**{"weight": ROW, "act": AffineSpec(8), **options})


@pytest.mark.parametrize(
    ("act", "message"), [(DYNAMIC, "computed in pieces"), (ROW, "per tensor or per token")], ids=["dynamic", "channels"]
)
def test_contradictions_of_an_attention_recipe_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        AttentionRecipe(act)


@pytest.mark.parametrize(
    ("options", "parts"),
    [({}, (7,)), ({"channel_split": True}, (3, 4)), ({"group_size": 3}, (3, 3, 1))],
    ids=["whole", "halves", "groups"],
)
def test_the_recipe_cuts_the_channels(options, parts):
    assert LayerRecipe(ROW, DYNAMIC, **options).parts(7) == parts


def test_bits_change_and_nothing_else():
    recipe = LayerRecipe(ROW, DYNAMIC, smoothing=0.3, rank=4)
    assert recipe.with_bits(4, 6).with_bits(8, 8) == recipe
    assert str(recipe.with_bits(4, 6)) == "w4a6, smoothing, rank 4"


def test_recipes_read_as_what_they_are():
    assert str(LayerRecipe(ROW, DYNAMIC)) == "w8a8"
    assert str(LayerRecipe(ROW, DYNAMIC, rotation=True, group_size=64)) == "w8a8, rotation, groups of 64"
    assert str(AttentionRecipe(AffineSpec(6), smoothing=0.3)) == "a6, smoothing"
