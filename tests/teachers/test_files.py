"""Teacher files hold everything to build the model again; other files are refused in one sentence."""

import pytest
import torch
from safetensors.torch import save_file

from quantsr.data.images import ImagesDataModule
from quantsr.data.photos import PhotosDataModule
from quantsr.errors import UserError
from quantsr.evaluation import measure
from quantsr.metrics.fidelity import psnr_y
from quantsr.teachers.files import PACKAGED, load_teacher, save_teacher
from quantsr.teachers.one_step import OneStepTeacher
from tests.conftest import micro_teacher


def test_second_round_trip_changes_nothing(tmp_path, lq):
    original = micro_teacher(timestep=249, color_fix="adain", scale=2).freeze()
    save_teacher(original, tmp_path / "first.safetensors")
    first = load_teacher(tmp_path / "first.safetensors")
    assert first.config == original.config
    assert (first(lq) - original(lq)).abs().max() < 0.02  # Weights were rounded to 16 bits, once.
    save_teacher(first, tmp_path / "second.safetensors")
    second = load_teacher(tmp_path / "second.safetensors")
    assert (tmp_path / "second.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())
    assert torch.equal(second(lq), first(lq))


def test_float32_keeps_every_bit(tmp_path, lq):
    teacher = micro_teacher().freeze()
    save_teacher(teacher, tmp_path / "t.safetensors", torch.float32)
    assert torch.equal(load_teacher(tmp_path / "t.safetensors")(lq), teacher(lq))


def test_loaded_teacher_is_frozen_in_float32(teacher):
    assert not teacher.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in teacher.parameters())


def test_writing_leaves_nothing_else(tmp_path):
    save_teacher(micro_teacher(), tmp_path / "t.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_missing_file_names_the_packaged_ones(tmp_path):
    with pytest.raises(UserError, match=r"no teacher weights at .*nowhere\.safetensors: give one of .*tiny_image"):
        load_teacher(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a tensor in sight", b"\xff" * 64], ids=["empty", "text", "bytes"])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.safetensors is not a readable safetensors file"):
        load_teacher(path)


def test_file_of_someone_else_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="was not written by quantsr"):
        load_teacher(tmp_path / "t.safetensors")


EVERY_PACKAGED = pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGED.glob("*.safetensors")))


@EVERY_PACKAGED
def test_packaged_teachers_are_small(name):
    teacher = load_teacher(name)
    assert isinstance(teacher, OneStepTeacher) and teacher.scale == 4
    assert sum(parameter.numel() for parameter in teacher.parameters()) <= 6e6
    assert (PACKAGED / f"{name}.safetensors").stat().st_size < 12e6
    assert teacher(torch.rand(1, 3, 13, 21)).shape == (1, 3, 52, 84)


@EVERY_PACKAGED
def test_the_denoiser_of_a_packaged_teacher_does_the_work(name):
    """With the mean of its output in its place the image is far worse: quantizing it shows something."""
    teacher, photos = load_teacher(name), PhotosDataModule(crop=128).validation()
    samples = [photos[number] for number in range(4)]
    lq, gt = (torch.stack([sample[key] for sample in samples]) for key in ("lq", "gt"))
    with torch.no_grad():
        latent = teacher.encode(lq)
        epsilon = teacher.denoise(latent)
        idle = epsilon.mean((2, 3), keepdim=True).expand_as(epsilon)
        scores = [psnr_y(teacher.render(teacher.clean(latent, e), lq).clamp(0, 1), gt).mean() for e in (epsilon, idle)]
    assert scores[0] > scores[1] + 1


@pytest.mark.slow
@EVERY_PACKAGED
def test_packaged_teachers_beat_bicubic_on_held_out_photographs(shared, name):
    photos = ImagesDataModule(shared / "photos", "test_*", validation_share=1, validation_crop=128)
    summary = measure({"teacher": load_teacher(name)}, photos.validation(), scale=4).summary()
    assert summary["images"] == 100
    assert summary["teacher"]["psnr_y"] >= summary["bicubic"]["psnr_y"] + 0.3
    assert summary["teacher"]["ssim"] > summary["bicubic"]["ssim"] + 0.01
