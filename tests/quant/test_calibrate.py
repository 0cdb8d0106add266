"""Observation: what is noted, how devices join, and what a model's modes do to modules that are not ours."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.quant.calibrate import mode, quantized_modules, set_mode, settle, uncalibrated
from quantsr.quant.prepare import prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec


class Small(nn.Module):
    """A convolution, attention, and an upsampler, which has a ``mode`` of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2)
        self.attention = Attention(8, heads=2, dim_head=4, norm_num_groups=2, residual_connection=True)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.up(self.conv(x)))


@pytest.fixture
def student() -> Small:
    model = Small().requires_grad_(False)
    weight, act = AffineSpec(4, granularity="channel", range="learned"), AffineSpec(4, range="learned")
    layers = LayerRecipe(weight, act, smoothing=0.3, offset=True, channel_split=True)
    prepare(model, [Rule("attention", AttentionRecipe(act, smoothing=0.3)), Rule("*", layers)])
    return model


def observe(model: nn.Module, observation: str, batch: Tensor) -> None:
    with torch.no_grad(), mode(model, observation):
        model(batch)


LAYERS = ["conv", "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"]


def test_quantized_modules_are_layers_and_attention_products(student):
    assert [name for name, _ in quantized_modules(student)] == [*LAYERS, "attention.processor", "unused"]


def test_modules_that_never_ran_are_named(student, calibrate):
    assert uncalibrated(quantized_modules(student)) == [*LAYERS, "attention.processor", "unused"]
    calibrate(student, torch.randn(2, 3, 4, 4))
    assert uncalibrated(quantized_modules(student)) == ["unused"]


def test_a_mode_is_left_as_it_was_found(student):
    set_mode(student, "full_precision")
    student.conv.mode = "quantized"
    with pytest.raises(RuntimeError, match="stop"), mode(student, "observe_ranges"):
        assert {module.mode for _, module in quantized_modules(student)} == {"observe_ranges"}
        raise RuntimeError("stop")
    assert student.conv.mode == "quantized"
    assert {module.mode for name, module in quantized_modules(student) if name != "conv"} == {"full_precision"}


def test_modes_of_other_modules_are_left_alone(student):
    with mode(student, "full_precision"):
        assert student.up.mode == "nearest"
    assert student.up.mode == "nearest"


def test_observing_changes_nothing_until_it_is_settled(student):
    before = deepcopy(student.state_dict())
    observe(student, "observe_smoothing", torch.randn(2, 3, 4, 4))
    for name, tensor in student.state_dict().items():
        if name in before and before[name].shape == tensor.shape:
            assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    settle(student)
    assert student.conv.smoothing.calibrated


def test_settling_without_notes_does_nothing(student):
    settle(student, join=lambda _: pytest.fail("there is nothing to join"))


@pytest.mark.parametrize("observation", ["observe_smoothing", "observe_ranges"])
def test_several_calls_in_one_batch_are_as_one_on_all_they_saw(student, observation):
    """As those of a sampling's steps, or of an image's tiles."""
    calls = torch.randn(3, 2, 3, 4, 4) * torch.tensor([3.0, 1.0, 0.5]).reshape(3, 1, 1, 1, 1)
    if observation == "observe_ranges":
        observe(student, "observe_smoothing", calls.flatten(0, 1))
        settle(student)
    together = deepcopy(student)
    for call in calls:
        observe(student, observation, call)
    observe(together, observation, calls.flatten(0, 1))
    for model in (student, together):
        settle(model)
    expected = together.state_dict()
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_changes_no_range(student, calibrate, value):
    calibrate(student, torch.randn(2, 3, 4, 4))
    before = deepcopy(student.state_dict())
    observe(student, "observe_ranges", torch.full((2, 3, 4, 4), value))
    with pytest.raises(UserError, match=r"^conv.input_quantizer met infinite or undefined values: "):
        settle(student)
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True, atol=0, rtol=0)


def test_no_inputs_are_stored(student):
    observe(student, "observe_smoothing", torch.randn(64, 3, 8, 8))
    notes = sum(m.pending.numel() for m in student.modules() if getattr(m, "pending", None) is not None)
    assert notes < 64 * 3 * 8 * 8 / 10


@pytest.mark.parametrize("batches", [1, 3])
def test_two_devices_find_what_one_finds_on_their_joined_batch(student, batches):
    """``join`` is the only thing that devices exchange: an element-wise maximum of what each has noted."""
    first, second, alone = student, deepcopy(student), deepcopy(student)
    for observation in ("observe_smoothing", "observe_ranges"):
        for _ in range(batches):
            halves = torch.randn(2, 2, 3, 4, 4) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
            for device, batch in ((first, halves[0]), (second, halves[1]), (alone, halves.flatten(0, 1))):
                observe(device, observation, batch)
            exchanged = []
            settle(deepcopy(first), join=lambda notes: exchanged.append(notes) or notes)  # noqa: B023
            settle(second, join=lambda notes: torch.maximum(notes, exchanged[0]))  # noqa: B023
            settle(alone)
            first.load_state_dict(second.state_dict())
            for module in first.modules():
                if hasattr(module, "pending"):
                    module.pending = None
    assert uncalibrated(quantized_modules(first)) == ["unused"]
    expected = alone.state_dict()
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")
