"""PassionSR's files: the imported layers compute what the authors' layers compute, slips included."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quantsr
from quantsr.deploy.artefact import load_student, read_config, save_student
from quantsr.deploy.released import swaps_of
from quantsr.deploy.released.passionsr import PassionSRFile, layer_of
from quantsr.errors import UserError
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.prepare import is_layer
from quantsr.quant.spec import Bits
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.osediff import STABLE_DIFFUSION
from tests.conftest import micro_video_teacher
from tests.deploy.released.originals import (
    MICRO_UNET,
    assert_agrees,
    empty_passionsr_layer,
    module_of,
    names_of,
    needs_reference,
    original,
    passionsr_layer,
    passionsr_state,
    vae_names,
    vectors_of,
    video_unet_shapes,
)

MICRO_VAE = vae_names(levels=2, blocks=1)
DOWN = "unet.down_blocks.1.resnets.0.conv1", "input_blocks.3.0.in_layers.2"
FEED = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2", "middle_block.1.transformer_blocks.0.ff.net.2"


@pytest.fixture
def files(teacher, tmp_path) -> list[Path]:
    """A released student of the micro teacher: UNet and VAE."""
    unet, vae = tmp_path / "unet_ckpt_merge_saw_sep.pth", tmp_path / "vae_ckpt_merge_saw_sep.pth"
    torch.save(passionsr_state(teacher.unet, MICRO_UNET, split=True), unet)
    torch.save(passionsr_state(teacher.vae, MICRO_VAE, split=False), vae)
    return [unet, vae]


def changed(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """The file with its content changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def entries_of(vectors: dict[str, Tensor], split: bool) -> dict[str, Tensor]:
    """Reference vectors in the authors' format; their bias quantizer takes the extremes of the bias."""
    entries = {"scale_factor": vectors["scale"], "offset": vectors["offset"]}
    for end in ("min", "max"):
        entries[f"bias_quantizer.x_{end}"] = getattr(vectors["bias"], end)()
        for half in range(2 if split else 1):
            for kind in ("weight", "act"):
                entries[f"{kind}_quantizer_{half}.x_{end}"] = vectors[f"{kind}_bounds.{half}.{end}"]
    return entries


@needs_reference
@pytest.mark.parametrize("name", names_of("passionsr_layer_*"))
def test_layers_in_a_file_compute_what_the_authors_layers_do(teacher, tmp_path, name):
    vectors, metadata = vectors_of(name)
    split, bits = metadata["split"] == "True", metadata["bits"]
    ours, theirs = DOWN if vectors["weight"].ndim == 4 else FEED
    teacher.set_submodule(ours, module_of(vectors))
    state = passionsr_state(teacher.unet, MICRO_UNET, split=True)
    if not split:  # Whole networks are split or not.
        state = {key: tensor for key, tensor in state.items() if "quantizer_1" not in key}
    state |= {f"model.model.{theirs}.{entry}": tensor for entry, tensor in entries_of(vectors, split).items()}
    torch.save(state, tmp_path / "unet.pth")

    student = quantsr.import_checkpoint(tmp_path / "unet.pth", teacher, f"w{bits}a{bits}")
    layer = student.get_submodule(ours)
    assert_agrees(layer.bias, vectors["bias_as_used"])
    assert_agrees(layer(vectors["x"]), vectors["y"], step=float(vectors["y"].abs().max()) / 10)


def authors_quantizer(x: Tensor, entries: dict[str, Tensor], name: str, bits: int) -> Tensor:
    """The released quantizer: halves are rounded away from zero, the zero point has the other sign than ours."""

    def rounded(t: Tensor) -> Tensor:
        return t.sign() * (t.abs() + 0.5).floor()

    lower, upper = entries[f"{name}.x_min"], entries[f"{name}.x_max"]
    delta = (upper - lower) / (2**bits - 1)
    zero = rounded(lower / delta)
    return ((rounded(x / delta) - zero).clamp(0, 2**bits - 1) + zero) * delta


@pytest.mark.parametrize("shape", [(2, 7, 12), (1, 1, 12), (3, 12)], ids=["odd tokens", "one token", "no tokens"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_linear_layers_split_axis_1_and_add_the_offset(shape, has_bias):
    """The slips of the released linear layers: as formulas."""
    generator = torch.Generator().manual_seed(1)
    module = torch.nn.Linear(12, 5, bias=has_bias).requires_grad_(False)
    entries = passionsr_layer(module, split=True, convolution=False, generator=generator)
    entries["act_quantizer_1.x_max"] = torch.tensor(0.5)  # The two halves are then told apart.
    x = 1.5 * torch.randn(shape, generator=generator)

    scale, offset = entries["scale_factor"], entries["offset"]
    middle = shape[1] // 2
    halves = ((x + offset) / scale).split([middle, shape[1] - middle], 1)
    x_hat = torch.cat([authors_quantizer(half, entries, f"act_quantizer_{i}", 8) for i, half in enumerate(halves)], 1)
    halves = (module.weight * scale).chunk(2, 1)
    w_hat = torch.cat([authors_quantizer(w, entries, f"weight_quantizer_{i}", 8) for i, w in enumerate(halves)], 1)
    y = x_hat @ w_hat.T + (module.weight @ offset.T).T
    if has_bias:
        y = y + authors_quantizer(module.bias, entries, "bias_quantizer", 8)

    layer = layer_of(module, entries, Bits(8, 8))
    assert layer.recipe.token_split and layer.recipe.channel_split
    assert torch.allclose(layer(x), y, atol=1e-5)


def test_attention_of_the_vae_is_made_of_convolutions_that_split_channels_if_at_all():
    module = torch.nn.Linear(12, 5).requires_grad_(False)
    entries = passionsr_layer(module, split=True, convolution=True, generator=torch.Generator().manual_seed(1))
    layer = layer_of(module, entries, Bits(8, 8))
    assert not layer.recipe.token_split
    assert torch.equal(layer.smoothing.offset, entries["offset"].flatten())


def test_products_of_attention(teacher, files):
    """q d_qk, k / d_qk, p d_vw and v / d_vw, each through its quantizer."""
    student = quantsr.import_checkpoint(files[0], teacher, "w8a8")
    attention = student.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor
    content = torch.load(files[0], weights_only=True)
    prefix = "model.model.middle_block.1.transformer_blocks.0.attn1."
    entries = {key.removeprefix(prefix): tensor for key, tensor in content.items() if key.startswith(prefix)}
    q, k, v = torch.randn(3, 1, 2, 16, 8, generator=torch.Generator().manual_seed(2))
    d_qk, d_vw = entries["scale_factor_qk"], entries["scale_factor_vw"]

    q_hat = authors_quantizer(q * d_qk, entries, "act_quantizer_q", 8)
    k_hat = authors_quantizer(k / d_qk, entries, "act_quantizer_k", 8)
    p = (q_hat @ k_hat.mT / 8**0.5).softmax(-1)
    v_hat = authors_quantizer(v / d_vw[:, None], entries, "act_quantizer_v", 8)
    y = authors_quantizer(p * d_vw, entries, "act_quantizer_w", 8) @ v_hat
    assert torch.allclose(attention.attend(q, k, v), y, atol=1e-5)


def test_student_runs_is_saved_and_comes_back_bit_for_bit(teacher, files, lq, tmp_path):
    student = quantsr.import_checkpoint(files, teacher, "w4a6")
    save_student(student, swaps_of(student), tmp_path / "artefact", 1, {"bits": "w4a6"})
    loaded = load_student(tmp_path / "artefact")
    for image in (lq, lq[:, :, :5, :7]):
        with torch.no_grad():
            assert torch.equal(loaded(image), student(image))
    assert not torch.equal(student(lq), teacher(lq))
    recipes = read_config(tmp_path / "artefact")["recipes"]
    assert {recipe.get("token_split") for recipe in recipes} == {True, False, None}


def test_every_layer_is_quantized_and_attention_of_the_unet_alone(teacher, files):
    student = quantsr.import_checkpoint(files, teacher, "w4a6")
    assert not [name for name, module in student.named_modules() if is_layer(module)]
    products = [s.name for s in swaps_of(student) if s.kind == "Attention"]
    assert len(products) == 8 and all(name.startswith("unet.") for name in products)
    processor = student.vae.encoder.mid_block.attentions[0].processor
    assert not isinstance(processor, QuantizedAttention)


def test_sensitive_layers_have_8_bits(teacher, files):
    student = quantsr.import_checkpoint(files, teacher, "w4a6")
    eight = {
        name
        for name, module in student.named_modules()
        if isinstance(module, FoldedLayer) and (module.recipe.weight.bits, module.recipe.act.bits) == (8, 8)
    }
    assert eight == {name for names in teacher.sensitive().values() for name in names}


def test_normalizations_come_from_the_file_and_the_teacher_stays(teacher, files, lq):
    before = teacher(lq)
    changed(files[0], lambda content: content["model.model.out.0.weight"].fill_(2.0))
    student = quantsr.import_checkpoint(files, teacher, "w8a8")
    assert (student.unet.conv_norm_out.weight == 2).all() and (teacher.unet.conv_norm_out.weight == 1).all()
    assert torch.equal(teacher(lq), before)


def test_unet_alone(teacher, files):
    student = quantsr.import_checkpoint(str(files[0]), teacher, Bits(6, 6))
    assert student.vae.encoder.conv_in.weight is teacher.vae.encoder.conv_in.weight


def full_size() -> OneStepTeacher:
    with torch.device("meta"):
        return OneStepTeacher(**STABLE_DIFFUSION)


@needs_reference
def test_full_size_unet_finds_every_entry():
    """Original names as the video UNet's, without what it has beside Stable Diffusion's."""
    shapes = {n: s for n, s in video_unet_shapes().items() if "temporal" not in n and ".spade." not in n}
    # In the middle, temporal blocks stand between Stable Diffusion's three.
    moved = {"middle_block.2.": "middle_block.1.", "middle_block.4.": "middle_block.2."}
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.startswith("middle_block.3."):
            continue
        module, _, leaf = name.rpartition(".")
        start = next((block for block in moved if name.startswith(block)), "")
        module = f"model.model.{moved.get(start, '')}{module.removeprefix(start)}"
        if len(shape) > 1:
            has_bias = f"{name.removesuffix('.weight')}.bias" in shapes
            state |= {f"{module}.{e}": t for e, t in empty_passionsr_layer(shape, has_bias, halves=2).items()}
        elif len(shapes[name.replace(".bias", ".weight")]) == 1:
            state[f"{module}.{leaf}"] = torch.empty(shape)
        if module.endswith(".to_q"):
            attention = module.removesuffix(".to_q")
            state |= {f"{attention}.act_quantizer_{f}.x_{e}": torch.empty(()) for f in "qkvw" for e in ("min", "max")}
            state |= {f"{attention}.scale_factor_qk": torch.empty(64), f"{attention}.scale_factor_vw": torch.empty(77)}
    file = PassionSRFile("unet.pth", state, full_size())
    file.check()
    layers = [module for module in file.network.modules() if is_layer(module)]
    assert len(layers) == sum("weight_quantizer_1.x_min" in entries for entries in file.modules.values()) == 282


def test_full_size_vae_finds_every_entry():
    teacher, blocks, state = full_size(), vae_names(levels=4, blocks=2), {}
    for name, module in teacher.vae.named_modules():
        if is_layer(module):
            shape = (*module.weight.shape, 1, 1)[:4]
            entries = empty_passionsr_layer(shape, has_bias=True, halves=1)
        else:
            entries = {leaf: torch.empty(p.shape) for leaf, p in module.named_parameters(recurse=False)}
        if entries:
            state |= {f"model.model.{original(name, blocks, unet=False)}.{e}": t for e, t in entries.items()}
    PassionSRFile("vae.pth", state, teacher).check()


class TestErrors:
    def test_no_file(self, teacher, tmp_path):
        with pytest.raises(UserError, match=r"there is no file .*nowhere\.pth"):
            quantsr.import_checkpoint(tmp_path / "nowhere.pth", teacher, "w8a8")

    def test_nothing_given(self, teacher):
        with pytest.raises(UserError, match="no file to import"):
            quantsr.import_checkpoint([], teacher, "w8a8")

    def test_damaged(self, teacher, files):
        files[0].write_bytes(files[0].read_bytes()[:1000])
        with pytest.raises(UserError, match=r"unet_ckpt_merge_saw_sep\.pth is not a readable file"):
            quantsr.import_checkpoint(files, teacher, "w8a8")

    def test_code_in_the_file_does_not_run(self, teacher, tmp_path):
        torch.save({"a.scale_factor": pytest.raises}, tmp_path / "code.pth")
        with pytest.raises(UserError, match=r"code\.pth holds neither"):
            quantsr.import_checkpoint(tmp_path / "code.pth", teacher, "w8a8")

    def test_something_else(self, teacher, tmp_path):
        torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
        with pytest.raises(UserError, match=r"teacher\.pth holds neither a student of PassionSR"):
            quantsr.import_checkpoint(tmp_path / "teacher.pth", teacher, "w8a8")

    def test_missing_unexpected_and_other_shapes_in_one_table(self, teacher, files):
        def change(content):
            del content["model.model.time_embed.0.offset"]
            content["model.model.out.2.delta"] = torch.zeros(())
            content["model.model.out.2.offset"] = torch.zeros(1, 3, 1, 1)

        with pytest.raises(UserError) as caught:
            quantsr.import_checkpoint(changed(files[0], change), teacher, "w8a8")
        _, missing, unexpected, other = str(caught.value).splitlines()
        assert missing.split() == ["missing", "1", "time_embed.0.offset"]
        assert unexpected.split() == ["unexpected", "1", "out.2.delta"]
        assert re.fullmatch(r" +wrong shape +1 +out\.2\.offset \(1, 3, 1, 1\) instead of \(8,\)", other)

    def test_a_module_that_the_file_has_not(self, teacher, files):
        def change(content):
            for key in [key for key in content if ".middle_block.0.in_layers.2." in key]:
                del content[key]

        with pytest.raises(UserError, match=r"missing +12 +mid_block\.resnets\.0\.conv1\.scale_factor"):
            quantsr.import_checkpoint(changed(files[0], change), teacher, "w8a8")

    def test_attention_that_never_saw_data(self, teacher, files):
        key = "model.model.middle_block.1.transformer_blocks.0.attn1.scale_factor_qk"
        changed(files[0], lambda content: content.update({key: torch.ones(1)}))
        with pytest.raises(UserError, match=r"wrong shape +1 +.*scale_factor_qk \(1,\) instead of \(8,\)"):
            quantsr.import_checkpoint(files, teacher, "w8a8")

    def test_a_part_twice(self, teacher, files):
        with pytest.raises(UserError, match="both hold the unet"):
            quantsr.import_checkpoint([files[0], files[0]], teacher, "w8a8")

    def test_video_teacher(self, files):
        with pytest.raises(UserError, match="a PassionSR student, which goes with an image teacher, not mgldvsr"):
            quantsr.import_checkpoint(files, micro_video_teacher(), "w8a8")

    def test_bits(self, teacher, files):
        with pytest.raises(ValueError, match="written like w4a8, not '8'"):
            quantsr.import_checkpoint(files, teacher, "8")
