"""An exported student computes what the simulated one computes, whole and in tiles."""

import json

import pytest
import torch

from quantsr.deploy import openvino
from quantsr.deploy.openvino.exporting import check, models
from quantsr.deploy.openvino.networks import CompiledNetwork
from quantsr.errors import UserError
from quantsr.methods.lsq import LSQ
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.svdquant import SVDQuant
from quantsr.methods.viditq import ViDiTQ
from quantsr.quant.recipe import LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher
from tests.conftest import micro_teacher, micro_video_teacher
from tests.deploy.test_artefact import calibrate, saved, student_of

STUDENTS = {
    "minmax_w8a8": (MinMax, "w8a8", {}),
    "lsq_w2a2": (LSQ, "w2a2", {}),
    "svdquant_w4a4": (SVDQuant, "w4a4", {"gptq": False}),
    "viditq_w4a4": (ViDiTQ, "w4a4", {}),
    "qartsr_w4a4": (QArtSR, "w4a4", {}),
}
"""Methods whose codes need no stage of their own; Q-Diffusion's layers are those of MinMax with a cut,
QuaRot's those of ViDiT-Q without smoothing. PassionSR's student is written first, below."""


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a.clamp(0, 1) - b.clamp(0, 1)).square().mean().log10())


@pytest.mark.parametrize(("kind", "bits", "options"), STUDENTS.values(), ids=STUDENTS)
def test_a_student_is_as_near_to_its_teacher_as_simulated(artefact_of, lq, kind, bits, options):
    """A code that is rounded the other way early moves others: the outputs differ, their error does not."""
    student, folder = artefact_of(kind, bits, **options)
    assert_as_near(openvino.load(folder, "f32"), student, lq)


def test_so_is_a_student_of_quantvsr(tmp_path, lq):
    teacher = micro_teacher()
    method = QuantVSR(teacher, Bits(6, 6), smallest_rank=2, largest_rank=4, rank_multiple=1)
    calibrate(method.student, lq)
    saved(method.student, method.swaps, teacher, tmp_path / "artefact")
    assert_as_near(openvino.load(tmp_path / "artefact", "f32"), method.student, lq)


def assert_as_near(exported: Teacher, student: Teacher, lq: torch.Tensor) -> None:
    with torch.no_grad():
        teacher, simulated, found = (model(lq) for model in (micro_teacher(), student, exported))
    assert psnr(found, teacher) == pytest.approx(psnr(simulated, teacher), abs=1)
    assert psnr(found, simulated) > psnr(simulated, teacher) - 3


def test_the_written_models_are_as_good(artefact_of, lq):
    student, folder = artefact_of(PassionSR)
    written, floating, sizes = openvino.export(folder)
    assert written == folder / "openvino" and floating == []
    assert sizes.keys() == {"encoder", "denoiser", "decoder"}
    about = json.loads((written / "openvino.json").read_text())
    assert about["bytes"] == sizes and about["floating"] == []
    assert_as_near(openvino.load(folder, "f32"), student, lq)


def test_loading_what_was_exported_reads_no_weights_of_the_student(artefact_of, monkeypatch):
    _, folder = artefact_of(MinMax)
    openvino.export(folder.parent)
    monkeypatch.setattr("quantsr.deploy.openvino.student.load_student", None)
    student = openvino.load(folder.parent)
    assert all(isinstance(network, CompiledNetwork) for network in student.networks)
    assert not any(p.is_meta for p in [*student.parameters(), *student.buffers()])


def test_the_student_is_as_it_was_after_its_conversion(artefact_of, lq):
    student, _ = artefact_of(MinMax)
    with torch.no_grad():
        before = student(lq)
        assert [part for part, _ in models(student)] == ["encoder", "denoiser", "decoder"]
        assert torch.equal(student(lq), before)


def test_any_size_runs_in_tiles_with_the_statistics_of_the_whole(artefact_of):
    student, folder = artefact_of(QArtSR, parts=["denoiser"])
    exported = openvino.load(folder, "f32")
    student.tile = exported.tile = 2 * student.size_multiple
    lq = torch.rand(1, 3, 13, 9, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        assert psnr(exported(lq), student(lq)) > 40


def test_an_image_in_tiles_comes_out_the_same_whatever_is_beside_it(artefact_of):
    _, folder = artefact_of(MinMax)
    exported = openvino.load(folder, "f32")
    exported.tile = 2 * exported.size_multiple
    lq = torch.rand(2, 3, 13, 9, generator=torch.Generator().manual_seed(6))
    lq[1] = lq[1].round()
    with torch.no_grad():
        assert torch.equal(exported(lq), torch.cat([exported(image) for image in lq.split(1)]))


def test_products_that_stay_in_floating_point_are_named(artefact_of):
    _, folder = artefact_of(SVDQuant, gptq=False, attention=True)
    _, floating, _ = openvino.export(folder)
    assert {f.why for f in floating} == {
        "a scale per position: a sum over positions with different scales is no sum of integers",
        "attention with a scale per token",
    }
    assert "vae.encoder.conv_in" in {f.name for f in floating}


VIDEO_STUDENTS = {
    "minmax_w6a6": (MinMax, "w6a6", {"parts": ["encoder", "denoiser", "decoder"], "attention": True}),
    "quantvsr_w6a6": (QuantVSR, "w6a6", {"smallest_rank": 2, "largest_rank": 4, "rank_multiple": 1}),
}


@pytest.mark.parametrize(("kind", "bits", "options"), VIDEO_STUDENTS.values(), ids=VIDEO_STUDENTS)
def test_so_is_a_student_of_clips(tmp_path, kind, bits, options):
    """With ranges of a whole segment, several timesteps, and layers over time."""
    teacher = micro_video_teacher()
    method = kind(teacher, Bits.parse(bits), **options)
    clips = torch.rand(2, teacher.frames, 3, 8, 12, generator=torch.Generator().manual_seed(7))
    calibrate(method.student, clips[:1])
    saved(method.student, method.swaps, teacher, tmp_path)
    _, _, sizes = openvino.export(tmp_path)
    assert sizes.keys() == {"encoder", "structure", "denoiser", "decoder"}
    exported = openvino.load(tmp_path, "f32")
    with torch.no_grad():
        simulated = torch.cat([method.student(clip) for clip in clips.split(1)])  # A range is that of one clip.
        expected, found = micro_video_teacher()(clips), exported(clips)
        assert torch.equal(found[1:], exported(clips[1:]))
    assert psnr(found, expected) == pytest.approx(psnr(simulated, expected), abs=1)
    assert psnr(found, simulated) > psnr(simulated, expected) - 3


def test_a_model_of_another_kind_is_refused(artefact_of):
    student, _ = artefact_of(MinMax)
    student.kind = "two_step"
    with pytest.raises(
        UserError, match=r"takes models of \['one_step', 'mgldvsr'\], this one is two_step: use runtime"
    ):
        check(student)


def test_the_released_token_split_is_refused(lq, tmp_path):
    spec = AffineSpec(8, granularity="channel")
    recipe = LayerRecipe(spec, AffineSpec(8), channel_split=True, token_split=True)
    rules = [Rule("unet.mid_block.attentions.0.proj_in", recipe), Rule("*")]
    teacher = micro_teacher()
    student, swaps = student_of(teacher, rules, lq)
    saved(student, swaps, teacher, tmp_path)
    with pytest.raises(UserError, match=r"cannot express the token split of unet\.mid_block\.attentions\.0\.proj_in"):
        openvino.load(tmp_path)
