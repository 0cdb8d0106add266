"""Teacher files hold everything to build the model again; other files are refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantsr.data.images import ImagesDataModule
from quantsr.data.motion import MotionDataModule
from quantsr.data.photos import PhotosDataModule
from quantsr.errors import UserError
from quantsr.evaluation import measure
from quantsr.metrics.fidelity import psnr_y
from quantsr.teachers.files import PACKAGED, load_teacher, save_teacher, teacher_without_weights
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.upscaling import on_device
from tests.conftest import micro_teacher, micro_video_teacher


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


class TestLoading:
    """A full-size model is drawn once, by whoever trained it, and in memory once."""

    @pytest.fixture(params=["one_step", "mgldvsr"])
    def saved(self, request, tmp_path):
        """A teacher, and the file that holds all its bits."""
        teacher = {"one_step": micro_teacher, "mgldvsr": micro_video_teacher}[request.param]().freeze()
        save_teacher(teacher, tmp_path / "t.safetensors", torch.float32)
        return teacher, tmp_path / "t.safetensors"

    def test_nothing_is_drawn(self, saved, monkeypatch):
        def drawn(*args, **options):
            raise AssertionError("random numbers were drawn on the CPU")

        state = torch.get_rng_state()
        monkeypatch.setattr(torch.random, "fork_rng", drawn)
        load_teacher(saved[1])
        assert torch.equal(torch.get_rng_state(), state)

    def test_architecture_alone_takes_no_memory_but_for_constants(self, saved):
        empty = teacher_without_weights(saved[0].kind, **saved[0].config)
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
        constants = {name for name, buffer in empty.named_buffers() if not buffer.is_meta}
        assert constants == {name for name, _ in empty.named_buffers() if name.startswith("schedule.")}

    def test_every_bit_and_every_constant_is_there(self, saved):
        teacher, loaded = saved[0], load_teacher(saved[1])
        ours, theirs = ({**dict(m.named_buffers()), **dict(m.named_parameters())} for m in (loaded, teacher))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        lq = torch.rand(1, *([teacher.frames] if teacher.frames > 1 else []), 3, 8, 8)
        assert torch.equal(loaded(lq), teacher(lq))

    def test_a_model_outlives_its_file(self, saved):
        loaded = load_teacher(saved[1])
        before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
        size = saved[1].stat().st_size
        with saved[1].open("r+b") as file:
            file.write(b"\xff" * size)
        assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())

    def test_weights_of_another_size_are_named(self, tmp_path):
        save_teacher(micro_teacher(), tmp_path / "t.safetensors")
        tensors = load_file(tmp_path / "t.safetensors") | {"unet.conv_in.bias": torch.zeros(3)}
        config = json.dumps(micro_teacher().config)
        save_file(tensors, tmp_path / "t.safetensors", metadata={"one_step": config})
        with pytest.raises(UserError, match=r"wrong shape .* unet\.conv_in\.bias \(3,\) instead of \(8,\)"):
            load_teacher(tmp_path / "t.safetensors")


NAMES = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
EVERY_PACKAGED = pytest.mark.parametrize("name", NAMES)
OF_IMAGES = pytest.mark.parametrize("name", [name for name in NAMES if "video" not in name])


@EVERY_PACKAGED
def test_packaged_teachers_are_small(name):
    teacher = load_teacher(name)
    assert isinstance(teacher, MGLDVSRTeacher if "video" in name else OneStepTeacher) and teacher.scale == 4
    assert sum(parameter.numel() for parameter in teacher.parameters()) <= 8e6
    assert (PACKAGED / f"{name}.safetensors").stat().st_size < 12e6
    clip = () if teacher.frames == 1 else (teacher.frames,)
    assert teacher(torch.rand(1, *clip, 3, 13, 21)).shape == (1, *clip, 3, 52, 84)


def scores_with_and_without_its_denoiser(teacher, lq, gt) -> list[float]:
    """PSNR-Y of what one denoising step predicts: as it is, and with the mean of epsilon in its place."""
    with torch.no_grad():
        latent, noisy = teacher.encode(lq), teacher.noisy(lq, 0)
        epsilon = teacher.denoise(latent, noisy)
        idle = epsilon.mean((-2, -1), keepdim=True).expand_as(epsilon)
        images = [teacher.render(teacher.clean(latent, e, noisy), lq).clamp(0, 1) for e in (epsilon, idle)]
    return [psnr_y(image.flatten(0, -4), gt.flatten(0, -4)).mean().item() for image in images]


@OF_IMAGES
def test_the_denoiser_of_a_packaged_teacher_does_the_work(name):
    """With the mean of its output in its place the image is far worse: quantizing it shows something."""
    photos = PhotosDataModule(crop=128).validation()
    samples = [photos[number] for number in range(4)]
    lq, gt = (torch.stack([sample[key] for sample in samples]) for key in ("lq", "gt"))
    own, idle = scores_with_and_without_its_denoiser(load_teacher(name), lq, gt)
    assert own > idle + 1


def test_the_denoiser_of_the_packaged_video_teacher_does_the_work():
    clip = MotionDataModule(validation_frames=5, clips_per_photo=1).validation()[0]
    own, idle = scores_with_and_without_its_denoiser(load_teacher("tiny_video"), clip["lq"][None], clip["gt"][None])
    assert own > idle + 1


@pytest.mark.slow
@OF_IMAGES
def test_packaged_teachers_beat_bicubic_on_held_out_photographs(shared, name):
    photos = ImagesDataModule(shared / "photos", "test_1*", validation_share=1, validation_crop=128)
    summary = measure({"teacher": load_teacher(name)}, photos.validation(), scale=4).summary()
    assert summary["images"] == 41
    assert summary["teacher"]["psnr_y"] >= summary["bicubic"]["psnr_y"] + 0.3
    assert summary["teacher"]["ssim"] > summary["bicubic"]["ssim"] + 0.01


@pytest.mark.slow
def test_the_packaged_video_teacher_beats_bicubic_on_held_out_clips(shared):
    clips = MotionDataModule(
        shared / "photos", "train_*", validation_pattern="test_10[0-4]*", clips_per_photo=1, validation_frames=5
    )
    summary = measure({"teacher": on_device(load_teacher("tiny_video"), "cpu")}, clips.validation(), scale=4).summary()
    assert summary["clips"] == 6
    assert summary["teacher"]["psnr_y"] > summary["bicubic"]["psnr_y"] + 0.1
    assert summary["teacher"]["ssim"] > summary["bicubic"]["ssim"]
    # As steady as the clips themselves are under interpolation.
    assert summary["teacher"]["warping"] < 2 * summary["gt"]["warping"]
