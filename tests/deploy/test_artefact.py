"""What is loaded from an artefact computes, bit for bit, what was saved; weights take b bits each."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

import quantsr
from quantsr.deploy.artefact import load_student, read_config, save_student
from quantsr.errors import UserError
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.quantvsr.allocation import Allocation, Quantiles
from quantsr.quant.calibrate import mode, quantized_modules, settle
from quantsr.quant.folded import FoldedLayer, fold
from quantsr.quant.low_rank import own_rank
from quantsr.quant.prepare import Swap, prepare
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher
from tests.conftest import micro_teacher, micro_video_teacher

BITS = [2, 3, 4, 6, 8]
CHANNEL, TENSOR, STEP = (
    AffineSpec(4, granularity="channel"),
    AffineSpec(4),
    AffineSpec(4, granularity="channel", range="step"),
)
RECIPES = {
    "rotation": LayerRecipe(CHANNEL, TENSOR, rotation=True),
    "rotation of halves": LayerRecipe(CHANNEL, TENSOR, rotation=True, channel_split=True),
    "low rank": LayerRecipe(CHANNEL, TENSOR, rank=2),
    "update": LayerRecipe(CHANNEL, TENSOR, update_rank=2),
    "groups": LayerRecipe(CHANNEL, AffineSpec(4, range="dynamic"), group_size=3),
    "symmetric": LayerRecipe(AffineSpec(3, symmetric=True, granularity="channel"), AffineSpec(8, symmetric=True)),
    "weights per tensor": LayerRecipe(AffineSpec(5), TENSOR, channel_split=True),
    "learned step": LayerRecipe(STEP, AffineSpec(4, range="step")),
    "tokens": LayerRecipe(CHANNEL, AffineSpec(4, granularity="token", range="dynamic")),
    "bias alignment": LayerRecipe(CHANNEL, TENSOR, bias_alignment=True),
    "quantized bias": LayerRecipe(CHANNEL, TENSOR, quantize_bias=True),
    "smoothing": LayerRecipe(CHANNEL, TENSOR, smoothing=0.5),
    "all": LayerRecipe(
        AffineSpec(3, granularity="channel", range="learned"),
        AffineSpec(6, range="learned"),
        smoothing=0.3,
        offset=True,
        rotation=True,
        rank=2,
        update_rank=2,
        channel_split=True,
        bias_alignment=True,
        quantize_bias=True,
    ),
}


def calibrate(student: Teacher, lq: torch.Tensor) -> None:
    """Calibrate on one batch, move whatever can be learned away from where it started, and fold."""
    for observation in ("observe_smoothing", "observe_ranges"):
        with torch.no_grad(), mode(student, observation):
            student(lq)
        settle(student)
    generator = torch.Generator().manual_seed(7)
    shared = set()
    with torch.no_grad():
        for _, module in quantized_modules(student):
            shared |= {id(getattr(module, key, None)) for key in ("weight", "bias")}
        for _, module in quantized_modules(student):
            for parameter in module.parameters():
                if id(parameter) not in shared:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.mul_(1 + 0.05 * noise).add_(0.01 * noise.abs())
    fold(student).eval()


def student_of(teacher: Teacher, rules: list[Rule], lq: torch.Tensor) -> tuple[Teacher, list[Swap]]:
    student = teacher.twin()
    swaps = prepare(student, rules, seed=3)
    calibrate(student, lq)
    return student, swaps


def saved(student: Teacher, swaps: list[Swap], teacher: Teacher, folder, about=None) -> dict[str, int]:
    return save_student(student, swaps, folder, sum(p.numel() for p in teacher.parameters()), about or {})


def folded_layers(student: Teacher) -> dict[str, FoldedLayer]:
    return {name: module for name, module in student.named_modules() if isinstance(module, FoldedLayer)}


def assert_same_outputs(student: Teacher, loaded: Teacher) -> None:
    for size in ((8, 8), (5, 9)):
        lq = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            assert torch.equal(loaded(lq), student(lq))


@pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"w{bits}a{bits}")
@pytest.mark.parametrize("kind", [MinMax, PassionSR, QArtSR], ids=lambda kind: kind.__name__)
def test_methods_come_back_bit_for_bit_at_b_bits_a_weight(teacher, lq, tmp_path, kind, bits):
    method = kind(teacher, Bits(bits, bits))
    calibrate(method.student, lq)
    sizes = saved(method.student, method.swaps, teacher, tmp_path / "artefact")
    assert_same_outputs(method.student, load_student(tmp_path / "artefact"))

    tensors = load_file(tmp_path / "artefact" / "student.safetensors")
    layers = folded_layers(method.student)
    assert len(layers) == sum(isinstance(swap.recipe, LayerRecipe) for swap in method.swaps)
    for name, layer in layers.items():
        width = layer.recipe.weight.bits
        assert tensors[f"{name}.codes"].numel() == math.ceil(layer.codes.numel() * width / 8)
        assert f"{name}.weight" not in tensors
        if layer.recipe.rank:
            assert tensors[f"{name}.L1"].dtype == tensors[f"{name}.L2"].dtype == torch.float16
    assert sizes["artefact"] == (tmp_path / "artefact" / "student.safetensors").stat().st_size
    assert sizes["fp32"] == 4 * sum(p.numel() for p in teacher.parameters())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_come_back_bit_for_bit(teacher, lq, tmp_path, recipe):
    attention = AttentionRecipe(AffineSpec(8, granularity="token", range="dynamic"))
    student, swaps = student_of(teacher, [Rule("*", recipe), Rule("*", attention)], lq)
    saved(student, swaps, teacher, tmp_path / "artefact")
    assert_same_outputs(student, load_student(tmp_path / "artefact"))


@pytest.mark.parametrize("build", [micro_teacher, micro_video_teacher], ids=["images", "clips"])
def test_branches_of_many_ranks_come_back_bit_for_bit(build, tmp_path):
    """As QuantVSR makes them: one recipe for every rank; some are cut to the rank of their weight."""
    teacher = build()
    method = QuantVSR(teacher, Bits(4, 6), smallest_rank=2, largest_rank=16, rank_multiple=1)
    limits = {name: own_rank(layer.weight) for name, layer in method.layers.items()}
    ranks = {name: 3 + number % 14 for number, name in enumerate(limits)}
    nothing = dict.fromkeys(ranks, 0.0)
    method.set_allocation(Allocation(ranks, nothing, nothing, Quantiles(0, 0, 0, 0), limits))
    method.find_weight_ranges()
    fold(method.student).eval()
    saved(method.student, method.swaps, teacher, tmp_path / "artefact")

    loaded = load_student(tmp_path / "artefact")
    assert {name: loaded.get_submodule(name).L1.shape[1] for name in ranks} == {
        name: min(rank, limits[name]) for name, rank in ranks.items()
    }
    recipes = read_config(tmp_path / "artefact")["recipes"]
    assert len({recipe["rank"] for recipe in recipes}) == len(recipes) > 3
    frames = () if teacher.frames == 1 else (teacher.frames,)
    for size in ((8, 8), (5, 9)):
        lq = torch.rand(2, *frames, 3, *size, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            assert torch.equal(loaded(lq), method.student(lq))


def test_several_recipes_and_layers_that_are_kept(teacher, lq, tmp_path):
    rules = [
        Rule("vae.*"),
        Rule("unet.mid_block.*", RECIPES["all"]),
        Rule("unet.conv_*"),
        Rule("unet.*", RECIPES["groups"]),
    ]
    student, swaps = student_of(teacher, rules, lq)
    saved(student, swaps, teacher, tmp_path / "artefact")
    assert_same_outputs(student, load_student(tmp_path / "artefact"))
    config = read_config(tmp_path / "artefact")
    assert len(config["recipes"]) == 2
    assert not any(name.startswith("vae") for name in config["modules"])


@pytest.fixture
def artefact(teacher, lq, tmp_path):
    """A run folder with an artefact, and the student in it."""
    student, swaps = student_of(teacher, [Rule("*", RECIPES["smoothing"])], lq)
    about = {
        "name": "a_run",
        "method": "MinMax",
        "bits": "w4a4",
        "teacher": "micro",
        "data": "images",
        "metrics": {"student": {"psnr_y": 25.125, "ssim": 0.75}, "fidelity_psnr": 31.5},
    }
    saved(student, swaps, teacher, tmp_path / "run" / "artefact", about)
    return tmp_path / "run" / "artefact", student


def test_folder_has_a_configuration_and_a_model_card_and_no_pickle(artefact, teacher):
    folder, _ = artefact
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "student.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == {"kind": "one_step", **teacher.config}
    assert config["bits"] == "w4a4" and config["metrics"]["student"]["ssim"] == 0.75
    assert config["recipes"] == [{"kind": "LayerRecipe", **asdict(RECIPES["smoothing"])}]
    card = (folder / "README.md").read_text()
    for text in ("# a_run", "MinMax at w4a4", "| student | 25.12 | 0.7500 |", "31.50 dB", "quantsr.load"):
        assert text in card
    assert (folder / "student.safetensors").read_bytes()[8:9] == b"{"


def test_run_folder_and_artefact_folder_load_alike(artefact):
    folder, student = artefact
    for place in (folder, folder.parent, str(folder)):
        assert_same_outputs(student, quantsr.load(place))


def test_loaded_student_is_frozen_and_has_no_float_weights_of_its_layers(artefact):
    loaded = load_student(artefact[0])
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    layers = folded_layers(loaded)
    assert layers and not any(name.endswith("weight") for layer in layers.values() for name in layer.state_dict())


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_loading_draws_nothing_and_leaves_nothing_empty(teacher, lq, tmp_path, recipe, monkeypatch):
    attention = AttentionRecipe(AffineSpec(8, granularity="token", range="dynamic"), smoothing=0.5)
    student, swaps = student_of(teacher, [Rule("*", recipe), Rule("*", attention)], lq)
    saved(student, swaps, teacher, tmp_path)
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.random, "fork_rng", None)  # Under which a teacher with random weights is made.
    loaded = load_student(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    ours, theirs = ({**dict(m.named_buffers()), **dict(m.named_parameters())} for m in (loaded, student))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def test_codes_are_those_of_the_student(artefact):
    folder, student = artefact
    first, second = student.get_submodule("unet.conv_in").codes.flatten()[:2].tolist()
    packed = load_file(folder / "student.safetensors")["unet.conv_in.codes"]
    assert packed[0].item() == first + 16 * second


def test_saving_again_replaces_and_leaves_nothing_unfinished(artefact, teacher, lq):
    folder, _ = artefact
    (folder / "old").write_text("of the artefact before")
    student, swaps = student_of(teacher, [Rule("*", RECIPES["groups"])], lq)
    saved(student, swaps, teacher, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["artefact"]
    assert not (folder / "old").exists()
    assert_same_outputs(student, load_student(folder))


class TestErrors:
    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"no artefact in .*nowhere: it needs config\.json"):
            load_student(tmp_path / "nowhere")

    def test_newer_format(self, artefact):
        folder, _ = artefact
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
        with pytest.raises(UserError, match="format 99, this quantsr reads 2: install a newer one"):
            load_student(folder)

    def test_older_format(self, artefact):
        folder, _ = artefact
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
        with pytest.raises(UserError, match="format 1, this quantsr reads 2: make it again"):
            load_student(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'], ids=["empty", "cut off", "a list", "foreign"])
    def test_configuration_of_something_else(self, artefact, content):
        folder, _ = artefact
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json"):
            load_student(folder)

    def test_missing_weights(self, artefact):
        folder, _ = artefact
        (folder / "student.safetensors").unlink()
        with pytest.raises(UserError, match=r"student\.safetensors"):
            load_student(folder)

    def test_broken_weights(self, artefact):
        folder, _ = artefact
        (folder / "student.safetensors").write_bytes(b"no tensors")
        with pytest.raises(UserError, match=r"student\.safetensors"):
            load_student(folder)

    def test_weights_of_another_student(self, artefact, teacher, lq, tmp_path):
        folder, _ = artefact
        student, swaps = student_of(teacher, [Rule("*", RECIPES["groups"])], lq)
        saved(student, swaps, teacher, tmp_path / "other")
        (tmp_path / "other" / "student.safetensors").replace(folder / "student.safetensors")
        with pytest.raises(UserError, match="does not fit its own configuration"):
            load_student(folder)
