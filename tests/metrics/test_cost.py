"""Cost of a student: by hand on two layers, and the properties that it has on whole models."""

import math
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantsr.deploy.artefact import WEIGHTS, save_student
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantvsr import QuantVSR
from quantsr.metrics.cost import cost
from quantsr.metrics.operations import macs_by_module, without_weights
from quantsr.quant import attention
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import FoldedLayer, fold
from quantsr.quant.prepare import is_attention, is_layer, prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher
from tests.conftest import micro_teacher, micro_video_teacher

IMAGES, CLIP = (2, 3, 8, 8), (1, 3, 3, 8, 8)
METHODS = {"minmax": MinMax, "passionsr": PassionSR, "qartsr": QArtSR, "quantvsr": QuantVSR}


class TwoLayers(Teacher):
    """Two convolutions as the denoiser, and a norm that is in no part."""

    kind, scale, config = "two layers", 1, {}
    entrance, exit = "unet.0", "unet.1"

    def __init__(self):
        super().__init__()
        self.unet = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1, bias=False))
        self.norm = nn.GroupNorm(1, 3)

    def encode(self, lq):
        return lq

    def denoise(self, latent, noisy=None):
        return self.unet(latent)

    def clean(self, latent, epsilon, noisy=None):
        return latent - epsilon

    def decode(self, latent, lq):
        return self.norm(latent)

    render = decode

    def features(self, image):
        return []

    def parts(self):
        return {"encoder": [], "denoiser": ["unet"], "decoder": []}

    def sensitive(self):
        return {"encoder": [], "denoiser": [], "decoder": []}

    blocks = sensitive


@pytest.fixture
def two_layers():
    """Cost of w4a8 with a branch of rank 2 in the first layer, for one image of 4 x 4."""
    teacher = TwoLayers()
    student = teacher.twin()
    recipe = LayerRecipe(weight=AffineSpec(4, granularity="channel"), act=AffineSpec(8), rank=2)
    prepare(student, [Rule("unet.0", recipe), Rule("unet.1")])
    return cost(student, teacher, (1, 3, 4, 4))


def test_bits_of_two_layers_are_those_counted_by_hand(two_layers):
    assert two_layers.stored == {
        ("denoiser", "low_bit"): 4 * 216,
        ("denoiser", "branch"): 16 * (8 * 2 + 2 * 27),
        ("denoiser", "qparams"): 32 * (8 + 8 + 2),  # scale, zero point, two bounds of the input
        ("denoiser", "kept"): 32 * (8 + 24),  # a bias, and the second layer
        ("other", "kept"): 32 * 6,
    }
    assert two_layers.parameters == {"denoiser": 216 + 8 + 24, "other": 6}
    assert two_layers.parameters_saved("denoiser") == pytest.approx(1 - (864 + 1120 + 1024) / (32 * 248))
    assert two_layers.bits_saved() == pytest.approx(1 - (864 + 1120 + 576 + 1024 + 192) / (32 * 254))


def test_operations_of_two_layers_are_those_counted_by_hand(two_layers):
    assert two_layers.computed == {
        ("denoiser", "low_bit", 4, 8): 16 * 216,
        ("denoiser", "branch", 16, 16): 16 * 70,
        ("denoiser", "kept", 32, 32): 16 * 24,
    }
    assert two_layers.macs == {"denoiser": 16 * 240}
    assert two_layers.operations() == (3456 * 8 + 1120 * 16 + 384 * 32) / 32
    assert two_layers.bops() == 3456 * 4 * 8 + 1120 * 16 * 16 + 384 * 32 * 32
    assert two_layers.operations_saved() == pytest.approx(1 - 1808 / 3840)
    assert two_layers.bops_saved() == pytest.approx(1 - 790528 / (3840 * 1024))


def test_the_report_has_the_same_figures_as_plain_numbers(two_layers):
    figures = two_layers.to_dict()
    assert figures["parameters_saved"] == two_layers.parameters_saved()
    assert figures["denoiser_operations_saved"] == two_layers.operations_saved("denoiser")
    assert figures["megabytes"] * 8e6 == pytest.approx(864 + 1120 + 576 + 1024 + 192)
    assert figures["gmacs"] * 1e9 == pytest.approx(3456 + 1120 + 384)
    assert figures["teacher_gbops"] * 1e9 == pytest.approx(3840 * 1024)
    assert all(isinstance(value, float) for value in figures.values())


def test_a_model_that_is_not_quantized_saves_nothing():
    teacher = micro_teacher()
    figures = cost(teacher.twin(), teacher, IMAGES).to_dict()
    for name in ("parameters_saved", "operations_saved", "bits_saved", "bops_saved", "denoiser_parameters_saved"):
        assert figures[name] == 0
    assert figures["gmacs"] == figures["teacher_gmacs"] > 0


# Operations of whole models.


def calls_of_layers(teacher: Teacher, lq: torch.Tensor) -> dict[str, int]:
    """MACs of all layers in a real run: positions of the output times weights."""
    found: Counter[str] = Counter()

    def note(name):
        def hook(layer, _, y):
            found[name] += y.numel() // len(layer.weight) * layer.weight.numel()

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in teacher.named_modules() if is_layer(m)]
    with torch.no_grad():
        teacher(lq)
    for handle in handles:
        handle.remove()
    return dict(found)


@pytest.mark.parametrize(("build", "shape"), [(micro_teacher, IMAGES), (micro_video_teacher, CLIP)])
def test_layers_multiply_as_often_as_in_a_real_run_with_all_its_steps(build, shape):
    teacher = build().freeze()
    layers = {name for name, module in teacher.named_modules() if is_layer(module)}
    counted = {name: macs for name, macs in macs_by_module(teacher, shape).items() if name in layers}
    assert counted == calls_of_layers(teacher, torch.rand(shape))


def test_every_step_of_a_denoiser_counts():
    one, three = (
        cost(teacher.twin(), teacher, CLIP).macs for teacher in (micro_video_teacher(steps=n) for n in (1, 3))
    )
    assert three["denoiser"] == 3 * one["denoiser"]
    assert three["decoder"] == one["decoder"]


def test_operations_grow_with_the_number_of_images():
    teacher = micro_teacher()
    one, two = (macs_by_module(teacher, (n, 3, 8, 8)) for n in (1, 2))
    rows = {"unet.time_embedding.linear_1", "unet.time_embedding.linear_2"}  # The timestep is the same for all images.
    assert {name: macs for name, macs in two.items() if name not in rows} == {
        name: 2 * macs for name, macs in one.items() if name not in rows
    }


def test_attention_counts_both_products_and_no_projection():
    macs = macs_by_module(micro_teacher(), IMAGES)
    # 2 images, a latent of 16 x 16 halved to 8 x 8: 64 positions of 16 channels, and 4 tokens of the prompt.
    assert macs["unet.mid_block.attentions.0.transformer_blocks.0.attn1"] == 2 * 2 * 64 * 64 * 16
    assert macs["unet.mid_block.attentions.0.transformer_blocks.0.attn2"] == 2 * 2 * 64 * 4 * 16


@pytest.mark.parametrize("chunk", [2**21, 64])
def test_attention_in_chunks_counts_like_one_product(monkeypatch, chunk):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    processor = QuantizedAttention(AttentionRecipe(AffineSpec(8, range="dynamic", granularity="token")), 8)
    q, k, v = torch.rand(3, 2, 2, 64, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        processor.attend(q, k, v)
    macs = macs_by_module(micro_teacher(), IMAGES)
    assert counter.get_total_flops() == 2 * macs["unet.mid_block.attentions.0.transformer_blocks.0.attn1"]


def test_products_of_attention_have_their_bits_where_they_are_quantized():
    teacher = micro_teacher()
    with_products, without = (
        cost(MinMax(teacher, Bits(4, 6), attention=on).student, teacher, IMAGES) for on in (True, False)
    )
    n = sum(macs_by_module(teacher, IMAGES)[name] for name, m in teacher.named_modules() if is_attention(m))
    assert sum(with_products.computed[part, "attention", 6, 6] for part in with_products.macs) == n
    assert sum(without.computed[part, "attention", 32, 32] for part in without.macs) == n
    assert with_products.operations_saved() == without.operations_saved()  # As papers count.
    assert with_products.bops() < without.bops()


# Students.


def calibrated(method, shape):
    """A method whose student has seen a batch."""
    for what in ("observe_smoothing", "observe_ranges"):
        with torch.no_grad(), mode(method.student, what):
            method.student(torch.rand(shape))
        settle(method.student)
    return method


def test_half_the_bits_halve_the_low_bit_part_but_for_what_stays_at_eight():
    teacher = micro_teacher()
    eight, four = (cost(MinMax(teacher, Bits(n, n)).student, teacher, IMAGES) for n in (8, 4))
    layers = [name for names in teacher.sensitive().values() for name in names]
    sensitive = sum(teacher.get_submodule(name).weight.numel() for name in layers)
    assert eight.bits(kind="low_bit") - 8 * sensitive == 2 * (four.bits(kind="low_bit") - 8 * sensitive)
    kept = sum(macs_by_module(teacher, IMAGES)[name] for name in layers)
    macs, left = eight.student_macs(kind="low_bit"), sum(n for (*_, w, _), n in four.computed.items() if w == 8)
    assert (left, macs) == (kept, four.student_macs(kind="low_bit"))
    for kind in ("kept", "qparams"):
        assert eight.bits(kind=kind) == four.bits(kind=kind)


@pytest.mark.parametrize("method", METHODS)
def test_a_folded_student_costs_the_same(method):
    teacher = micro_teacher()
    made = calibrated(METHODS[method](teacher, Bits(4, 4)), IMAGES)
    before = cost(made.student, teacher, IMAGES)
    fold(made.student)
    assert any(isinstance(module, FoldedLayer) for module in made.student.modules())
    assert cost(made.student, teacher, IMAGES) == before


@pytest.mark.parametrize("method", METHODS)
def test_a_student_without_weights_costs_the_same(method):
    found = [
        cost(METHODS[method](teacher, Bits(4, 4)).student, teacher, IMAGES)
        for teacher in (micro_teacher(), without_weights(micro_teacher()))
    ]
    assert found[0] == found[1]


def test_counting_leaves_the_models_as_they_are():
    teacher = micro_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    cost(MinMax(teacher, Bits(4, 4)).student, teacher, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_clips_have_an_unquantized_structure_encoder_beside_the_parts():
    teacher = micro_video_teacher()
    found = cost(METHODS["quantvsr"](teacher, Bits(4, 4)).student, teacher, CLIP)
    structure = sum(p.numel() for p in teacher.structure.parameters())
    assert found.bits("other") == 32 * structure
    assert found.operations("other") == found.macs["other"]
    assert found.bits("denoiser", "branch") > 0
    assert found.bits("encoder", "low_bit") == 0


@pytest.mark.parametrize("bits", [4, 3])
def test_the_artefact_stores_as_many_low_bits_as_are_counted(tmp_path, bits):
    teacher = micro_teacher()
    method = calibrated(MinMax(teacher, Bits(bits, bits)), IMAGES)
    student = fold(method.student)
    save_student(student, method.swaps, tmp_path / "artefact", 1, {"name": "x", "method": "MinMax", "bits": "w4a4"})
    stored = load_file(tmp_path / "artefact" / WEIGHTS)
    layers = {name: m for name, m in student.named_modules() if isinstance(m, FoldedLayer)}
    sizes = {name: stored[f"{name}.codes"].numel() for name in layers}
    assert sizes == {name: math.ceil(m.codes.numel() * m.recipe.weight.bits / 8) for name, m in layers.items()}
    counted = cost(student, teacher, IMAGES).bits(kind="low_bit")
    assert 0 <= 8 * sum(sizes.values()) - counted < 8 * len(layers)
