"""Rules: the first wins, nothing is left out silently, and the original model does not notice."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.calibrate import quantized_modules
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.prepare import Swap, apply_swap, is_attention, is_layer, prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec
from quantsr.teachers.base import Teacher

FOUR = LayerRecipe(AffineSpec(4, granularity="channel"), AffineSpec(4))
EIGHT = FOUR.with_bits(8, 8)
PRODUCTS = AttentionRecipe(AffineSpec(8), smoothing=0.3)
EVERYTHING = LayerRecipe(
    AffineSpec(4, granularity="channel", range="learned"),
    AffineSpec(4, range="learned"),
    smoothing=0.3,
    offset=True,
    rotation=True,
    rank=2,
    channel_split=True,
    bias_alignment=True,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1))
        self.attention = Attention(8, heads=2, dim_head=4, norm_num_groups=2, residual_connection=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.body(self.head(x)))


@pytest.fixture
def model() -> Model:
    return Model().requires_grad_(False)


LAYERS = [
    "head", "body.0", "body.3", "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0",
]  # fmt: skip


def test_the_first_matching_rule_wins(model):
    prepare(model, [Rule("head"), Rule("body.0", EIGHT), Rule("body*", FOUR), Rule("*", EIGHT)])
    assert type(model.head) is nn.Conv2d
    assert model.body[0].recipe == EIGHT
    assert model.body[3].recipe == FOUR
    assert model.attention.to_out[0].recipe == EIGHT


def test_what_was_done_comes_back_as_a_table(model):
    table = prepare(model, [Rule("head"), Rule("*", FOUR)])
    assert [swap.name for swap in table] == LAYERS
    assert table[0] == Swap("head", "Conv2d", "head", None)
    assert table[-1] == Swap("attention.to_out.0", "Linear", "*", FOUR)


def test_modules_without_products_are_left_alone(model):
    prepare(model, [Rule("*", FOUR)])
    assert type(model.body[1]) is nn.GroupNorm
    assert {name for name, _ in quantized_modules(model)} == set(LAYERS)


def test_a_layer_that_no_rule_matches_is_an_error(model):
    with pytest.raises(ValueError, match=r"no rule says what to do with 3 layers: head, body\.0, body\.3"):
        prepare(model, [Rule("attention.*", FOUR)])
    assert not list(quantized_modules(model))


@pytest.mark.parametrize(
    "idle",
    [Rule("tail", EIGHT), Rule("body.1", EIGHT), Rule("head*", EIGHT), Rule("body*", PRODUCTS)],
    ids=["no_such_name", "no_layer", "an_earlier_rule_wins", "no_attention_there"],
)
def test_a_rule_that_decides_nothing_is_an_error(model, idle):
    with pytest.raises(ValueError, match="rules that decide nothing") as error:
        prepare(model, [Rule("head", FOUR), idle, Rule("body.[03]", FOUR), Rule("*", FOUR)])
    assert repr(idle.pattern) in str(error.value)
    assert not list(quantized_modules(model))


def test_attention_takes_attention_recipes_and_its_layers_take_theirs(model):
    table = prepare(model, [Rule("attention*", PRODUCTS), Rule("*", FOUR)])
    assert Swap("attention", "Attention", "attention*", PRODUCTS) in table
    assert isinstance(model.attention.processor, QuantizedAttention)
    assert isinstance(model.attention.to_q, QuantizedLayer)


def test_attention_that_no_rule_names_stays_as_it_is(model):
    before = model.attention.processor
    prepare(model, [Rule("*", FOUR)])
    assert model.attention.processor is before


def test_keeping_attention_wins_over_a_later_recipe(model):
    before = model.attention.processor
    model.other = deepcopy(model.attention)
    prepare(model, [Rule("attention"), Rule("*", FOUR), Rule("*", PRODUCTS)])
    assert model.attention.processor is before
    assert isinstance(model.other.processor, QuantizedAttention)


def test_a_rule_that_an_earlier_one_hides_is_refused_though_its_pattern_is_in_use(model):
    with pytest.raises(ValueError, match="decide nothing"):
        prepare(model, [Rule("attention"), Rule("*", FOUR), Rule("*", PRODUCTS)])


def test_the_kinds_are_told_apart(model):
    assert [is_layer(m) for m in (model.head, nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 1), model.attention)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [is_attention(m) for m in (model.attention, model.head)] == [True, False]


def test_a_module_of_two_names_is_swapped_under_both():
    model, layer = nn.Module(), nn.Linear(4, 4)
    model.first, model.second = layer, layer
    assert [swap.name for swap in prepare(model, [Rule("*", FOUR)])] == ["first", "second"]
    assert isinstance(model.second, QuantizedLayer)
    assert model.first.weight is model.second.weight is layer.weight


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_layers_take_over_whether_they_train(model, training):
    prepare(model.train(training), [Rule("*", FOUR)])
    assert all(module.training is training for module in model.modules())


def test_rotations_differ_between_layers_but_not_between_runs():
    def rotations(seed: int) -> list[Tensor]:
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        prepare(model, [Rule("*", EVERYTHING)], seed)
        return [layer.rotation.rotation_0 for layer in model]

    first, again, other = rotations(0), rotations(0), rotations(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], other[0])


def test_one_swap_can_be_applied_alone(model):
    apply_swap(model, Swap("body.0", "Conv2d", "", FOUR), seed=0)
    assert [name for name, _ in quantized_modules(model)] == ["body.0"]
    apply_swap(model, Swap("head", "Conv2d", "", None), seed=0)
    assert type(model.head) is nn.Conv2d


# A student beside its teacher.


def test_student_and_teacher_share_every_parameter(model):
    student = Teacher.twin(model)
    prepare(student, [Rule("*", PRODUCTS), Rule("*", EVERYTHING)])
    for name, parameter in model.named_parameters():
        assert student.get_parameter(name) is parameter
    assert not list(quantized_modules(model))


def test_calibrating_and_training_a_student_leaves_its_teacher_bit_for_bit(model, calibrate):
    x = torch.randn(2, 3, 6, 5)
    expected = model(x)
    student = Teacher.twin(model)
    prepare(student, [Rule("*", PRODUCTS), Rule("*", EVERYTHING)])
    calibrate(student, x)
    shared = {id(p) for p in model.parameters()}
    trained = [p for p in student.parameters() if id(p) not in shared]
    optimizer = torch.optim.Adam(trained, 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (student(x) - expected).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    assert torch.equal(model(x), expected)
    assert not torch.equal(student(x), expected)
