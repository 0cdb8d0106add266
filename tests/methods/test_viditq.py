"""ViDiT-Q: bounds for every token, channels balanced by scale and rotation, the full-precision model untouched."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from quantsr.deploy.artefact import load_student, save_student
from quantsr.methods.minmax import MinMax
from quantsr.methods.viditq import ViDiTQ
from quantsr.quant.calibrate import mode, quantized_modules, settle, uncalibrated
from quantsr.quant.folded import fold
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import Bits
from quantsr.quant.transforms import channel_magnitude
from tests.conftest import ROOT

TEACHERS = pytest.mark.parametrize("of", ["teacher", "video_teacher"])


def build(teacher, bits: Bits = Bits(4, 4), **options) -> ViDiTQ:  # noqa: B008
    return ViDiTQ(teacher, bits, **{"observation_steps": 2} | options)


@pytest.fixture
def calibrated(teacher) -> tuple[QuantizedLayer, torch.Tensor]:
    """A calibrated linear layer of the method's recipe, and its inputs, channel 5 a hundred times as loud."""
    x = torch.randn(200, 64)
    x[:, 5] *= 100
    recipe = build(teacher, alpha=0.5).layer_recipe(Bits(4, 4), "denoiser")
    layer = QuantizedLayer(torch.nn.Linear(64, 32).requires_grad_(False), recipe)
    for what in ("observe_smoothing", "observe_ranges"):
        with mode(layer, what), torch.no_grad():
            layer(x)
        settle(layer)
    return layer, x


def test_the_scale_is_that_of_smoothquant(calibrated):
    layer, x = calibrated
    expected = channel_magnitude(x, -1) ** 0.5 / channel_magnitude(layer.weight, 1) ** 0.5
    torch.testing.assert_close(layer.smoothing.scale.detach(), expected)


def test_scale_and_rotation_leave_the_product_as_it_was(calibrated):
    layer, x = (part.double() for part in calibrated)
    y = layer.operation(layer.transformed_input(x), layer.transformed_weight(), layer.bias)
    torch.testing.assert_close(y, layer.operation(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_an_outlier_channel_is_flattened(calibrated):
    layer, x = calibrated

    def peak(t: torch.Tensor) -> float:
        return (t.abs().amax(1) / t.square().mean(1).sqrt()).mean().item()

    with torch.no_grad():
        scaled, both = layer.smoothing.input(x), layer.transformed_input(x)
    assert peak(x) > 6 and peak(scaled) < 0.8 * peak(x) and peak(both) < 0.8 * peak(scaled)


def test_every_token_has_bounds_of_its_own(calibrated):
    """A token a thousand times as loud as another changes nothing of that one's codes."""
    layer, x = calibrated
    with torch.no_grad():
        alone = layer.quantized_input(x[:1])
        beside = layer.quantized_input(torch.cat([x[:1], 1000 * x[1:2]]))
    torch.testing.assert_close(beside[:1], alone, atol=1e-4, rtol=1e-4)
    assert len(alone.unique()) <= 2**4


@TEACHERS
def test_a_run_calibrates_every_layer(request, of, fit):
    method = build(request.getfixturevalue(of))
    fit(method)
    assert uncalibrated(quantized_modules(method.student)) == []
    assert [stage.name for stage in method.plan] == ["smoothing", "ranges"] and not method.trains


@pytest.mark.slow
def test_more_bits_are_nearer_to_the_teacher(teacher, fit, lq):
    def error(kind, bits: int) -> float:
        method = kind(teacher, Bits(bits, bits), observation_steps=2)
        fit(method)
        with torch.no_grad():
            return (method.student.restore(lq) - teacher.restore(lq)).square().mean().item()

    errors = [error(ViDiTQ, bits) for bits in (8, 6, 4)]
    assert errors == sorted(errors)
    assert errors[-1] < error(MinMax, 4)


def test_attention_products_stay_in_full_precision_unless_asked_for(teacher):
    kinds = {attention: {type(s.recipe) for s in build(teacher, attention=attention).swaps} for attention in (0, 1)}
    assert kinds == {0: {LayerRecipe}, 1: {LayerRecipe, AttentionRecipe}}


@TEACHERS
def test_the_artefact_comes_back_bit_for_bit(request, of, fit, tmp_path):
    method = build(request.getfixturevalue(of), attention=True)
    fit(method)
    student = fold(method.student)
    save_student(student, method.swaps, tmp_path / "artefact", 1, {})
    lq = torch.rand(1, *([3] if of == "video_teacher" else []), 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path / "artefact")(lq), student(lq))


@pytest.mark.parametrize("stage", ["smoothing", "ranges"])
def test_resuming_inside_a_stage_ends_in_the_same_student(teacher, resume, stage):
    resume(lambda: build(teacher), stage)


def test_the_page_on_new_methods_shows_it_as_it_is(teacher):
    """Its listings run as they stand, and say what the package's own files say."""
    page = (ROOT / "docs" / "add_a_method.md").read_text()
    code, config = (re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)[1] for language in ("python", "yaml"))
    listed = {}
    exec(code, listed)
    shown, own = (kind(teacher, Bits(4, 4), observation_steps=2) for kind in (listed["ViDiTQ"], ViDiTQ))
    assert shown.swaps == own.swaps
    assert [(stage.name, stage.steps) for stage in shown.plan] == [(stage.name, stage.steps) for stage in own.plan]
    assert OmegaConf.create(config) == OmegaConf.load(ROOT / "conf" / "method" / "viditq.yaml")
