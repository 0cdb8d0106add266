"""QuantVSR's files: the imported layers compute what the authors' layers compute."""

import pytest
import torch

import quantsr
from quantsr.deploy.artefact import load_student, save_student
from quantsr.deploy.released import swaps_of
from quantsr.deploy.released.quantvsr import EXCLUDED, QuantVSRFile, layer_of
from quantsr.errors import UserError
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.prepare import is_layer
from quantsr.quant.spec import Bits
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.mgldvsr.checkpoints import FULL_SIZE
from tests.conftest import micro_video_teacher
from tests.deploy.released.originals import (
    assert_agrees,
    module_of,
    names_of,
    needs_reference,
    quantvsr_content,
    quantvsr_layer,
    vectors_of,
    video_unet_shapes,
)

LAYER = {4: "middle_block.0.out_layers.3", 2: "middle_block.2.transformer_blocks.0.ff.net.2"}
"""Where reference vectors take the place of a layer: a convolution, a linear layer."""


@pytest.fixture(scope="module")
def video_teacher() -> MGLDVSRTeacher:
    return micro_video_teacher().freeze()


@pytest.fixture
def file(video_teacher, tmp_path):
    """A released student of the micro video teacher."""
    path = tmp_path / "w4a4.pth"
    torch.save(quantvsr_content(video_teacher.unet), path)
    return path


def changed(path, change):
    """The file with its content changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@needs_reference
@pytest.mark.parametrize("name", names_of("quantvsr_layer_*"))
def test_layers_in_a_file_compute_what_the_authors_layers_do(tmp_path, name):
    vectors, metadata = vectors_of(name)
    teacher, place = micro_video_teacher(), LAYER[vectors["weight"].ndim]
    teacher.unet.set_submodule(place, module_of(vectors))
    content = quantvsr_content(teacher.unet)
    entries = {"stca._rank": torch.tensor(16), "lba.lba": vectors["bias_alignment"]}
    entries |= {f"stca.{factor}": vectors[f"low_rank.{factor}"] for factor in ("L1", "L2")}
    for half, suffix in enumerate(("", "1")):
        entries[f"rot{suffix}.rot_mat"] = vectors[f"rotation.{half}"]
        entries |= {f"wq{suffix}.x_{end}": vectors[f"weight_bounds.{half}.{end}"] for end in ("min", "max")}
    content[f"model.{place}"] = entries
    torch.save(content, tmp_path / "student.pth")

    student = quantsr.import_checkpoint(tmp_path / "student.pth", teacher, f"w{metadata['bits']}a{metadata['bits']}")
    y = student.unet.get_submodule(place)(vectors["x"])
    assert_agrees(y, vectors["y"], step=float(vectors["y"].abs().max()) / 10)


def test_scales_are_at_least_1e_4():
    """In weights and in inputs: what is smaller than half of it becomes 0."""
    generator = torch.Generator().manual_seed(1)
    module = torch.nn.Linear(8, 5).requires_grad_(False)
    entries = quantvsr_layer(module, 2, generator)
    entries |= {
        f"wq{s}.x_{end}": torch.full((5, 1), sign * 1e-5) for s in ("", "1") for end, sign in (("min", -1), ("max", 1))
    }
    layer = layer_of(module, entries, Bits(4, 4))
    assert torch.allclose(layer.scale, torch.tensor(1e-4))
    x = 4e-5 * torch.eye(8)
    assert (layer.input_quantizer(x) == 0).all()


def test_student_runs_is_saved_and_comes_back_bit_for_bit(video_teacher, file, tmp_path):
    student = quantsr.import_checkpoint(file, video_teacher, "w4a4")
    save_student(student, swaps_of(student), tmp_path / "artefact", 1, {"bits": "w4a4"})
    loaded = load_student(tmp_path / "artefact")
    clip = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(clip), student(clip))
    assert not torch.equal(student(clip), video_teacher(clip))


def test_layers_and_ranks(video_teacher, file):
    student = quantsr.import_checkpoint(file, video_teacher, "w4a4")
    kept = {name for name, module in student.unet.named_modules() if is_layer(module)}
    assert kept == set(EXCLUDED)
    layers = [module for module in student.modules() if isinstance(module, FoldedLayer)]
    assert {layer.L1.shape[1] for layer in layers} == {3, 4, 5}
    assert all(layer.L1.dtype == torch.float32 for layer in layers)
    assert not [name for name, module in student.vae.named_modules() if isinstance(module, FoldedLayer)]


@needs_reference
def test_full_size_unet_finds_every_entry():
    content = {}
    for name, shape in video_unet_shapes().items():
        layer = name.removesuffix(".weight")
        if len(shape) == 1 or layer in EXCLUDED:
            continue
        rows, channels, *kernel = shape
        entries = {
            f"{quantizer}.x_{end}": torch.empty(rows, 1) for quantizer in ("wq", "wq1") for end in ("min", "max")
        }
        entries |= {"stca._rank": torch.tensor(16), "lba.lba": torch.empty(1, rows, *(1 for _ in kernel))}
        entries |= {"stca.L1": torch.empty(rows, 16), "stca.L2": torch.empty(16, torch.Size(shape[1:]).numel())}
        entries |= {f"{name}.rot_mat": torch.empty(channels // 2, channels // 2) for name in ("rot", "rot1")}
        content[f"model.{layer}"] = {entry: tensor.to("meta") for entry, tensor in entries.items()}
    with torch.device("meta"):
        teacher = MGLDVSRTeacher(**FULL_SIZE)
    QuantVSRFile("w4a4.pth", content, teacher).check()
    assert len(content) == sum(is_layer(module) for module in teacher.unet.modules()) - len(EXCLUDED) > 300


class TestErrors:
    def test_missing_unexpected_and_other_shapes_in_one_table(self, video_teacher, file):
        def change(content):
            del content["model.time_embed.2"]
            content["model.out.2"] = {"lba.lba": torch.zeros(1, 4, 1, 1)}
            content["model.input_blocks.1.0.in_layers.2"]["rot.rot_mat"] = torch.zeros(0)

        with pytest.raises(UserError) as caught:
            quantsr.import_checkpoint(changed(file, change), video_teacher, "w4a4")
        _, missing, unexpected, other = str(caught.value).splitlines()
        assert missing.split()[:3] == ["missing", "10", "model.time_embed.2.wq.x_min,"]
        assert unexpected.split() == ["unexpected", "1", "model.out.2.lba.lba"]
        name = "model.input_blocks.1.0.in_layers.2.rot.rot_mat"
        assert other.split()[:7] == ["wrong", "shape", "1", name, "(0,)", "instead", "of"]

    def test_a_layer_without_a_factor_of_its_branch(self, video_teacher, file):
        def change(content):
            del content["model.time_embed.2"]["stca.L1"]

        with pytest.raises(UserError, match=r"missing +1 +model\.time_embed\.2\.stca\.L1") as caught:
            quantsr.import_checkpoint(changed(file, change), video_teacher, "w4a4")
        assert "L2" not in str(caught.value)

    def test_image_teacher(self, teacher, file):
        with pytest.raises(UserError, match="a QuantVSR student, which goes with an MGLD-VSR teacher, not one_step"):
            quantsr.import_checkpoint(file, teacher, "w4a4")
