"""The MGLD-VSR teacher keeps the contract of a teacher, for clips of any size; its sampling is in test_sampling.py."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from quantsr.errors import UserError
from quantsr.quant.prepare import is_layer
from quantsr.teachers.files import build_teacher, load_teacher, save_teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.micro import MICRO_VIDEO
from tests.conftest import micro_video_teacher

SIZES = [(8, 8), (7, 9), (1, 1), (5, 16), (3, 2)]


# Input and output


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_output_is_four_times_the_input_and_in_range(teacher, size):
    sr = teacher(torch.rand(2, 3, 3, *size))
    assert sr.shape == (2, 3, 3, 4 * size[0], 4 * size[1])
    assert sr.min() >= 0 and sr.max() <= 1 and sr.isfinite().all()


@pytest.mark.parametrize("scale", [1, 2, 4], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_scale_and_colour_correction_are_arguments(scale, color_fix):
    teacher = micro_video_teacher(scale=scale, color_fix=color_fix, steps=1).freeze()
    assert teacher(torch.rand(1, 3, 3, 9, 11)).shape == (1, 3, 3, 9 * scale, 11 * scale)


@pytest.mark.parametrize("frames", [1, 2, 5], ids=lambda frames: f"{frames} frames")
def test_length_of_a_segment_is_an_argument(frames):
    teacher = micro_video_teacher(frames=frames, steps=2, flow="dis").freeze()
    assert teacher.frames == frames
    assert teacher(torch.rand(1, frames, 3, 8, 8)).shape == (1, frames, 3, 32, 32)


@pytest.mark.parametrize("flow", [None, "dis"], ids=["unguided", "guided"])
def test_batch_does_not_matter(flow, lq):
    teacher = micro_video_teacher(flow=flow).freeze()
    assert_close(teacher(lq), torch.cat([teacher(one[None]) for one in lq]), atol=1e-4, rtol=1e-4)


def test_same_output_every_time(teacher, lq):
    first, state = teacher(lq), torch.random.get_rng_state()
    assert torch.equal(teacher(lq), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_comes_from_its_seed(teacher, lq):
    other = micro_video_teacher(noise_seed=1).freeze()
    assert torch.equal(other.encode(lq), teacher.encode(lq))
    assert not torch.allclose(other(lq), teacher(lq), atol=1e-3)


def test_frames_of_a_clip_see_each_other(teacher, lq):
    changed = lq.clone()
    changed[0, 1] = 1 - changed[0, 1]
    difference = (teacher(changed) - teacher(lq)).abs().amax((2, 3, 4))
    assert (difference[0] > 1e-4).all() and (difference[1] == 0).all()


def test_works_in_inference_mode(panning):
    teacher = micro_video_teacher(flow="dis").freeze()
    with torch.inference_mode():
        inferred = teacher(panning)
    assert_close(inferred.clone(), teacher(panning))


# Names


def test_every_layer_is_in_one_part_or_kept(teacher):
    parts = teacher.parts()
    assert list(parts) == ["encoder", "denoiser", "decoder"]
    owners = [*(prefix for prefixes in parts.values() for prefix in prefixes), *teacher.kept()]
    for name, module in teacher.named_modules():
        if is_layer(module):
            assert sum(f"{name}.".startswith(f"{owner}.") for owner in owners) == 1, name


def test_blocks_hold_every_layer_of_their_part(teacher):
    blocks = teacher.blocks()
    for part, prefixes in teacher.parts().items():
        for name, module in teacher.named_modules():
            if is_layer(module) and any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes):
                assert sum(f"{name}.".startswith(f"{block}.") for block in blocks[part]) == 1, name


def test_blocks_run_in_the_order_of_their_names(teacher, lq):
    blocks, order = teacher.blocks(), []
    for names in blocks.values():
        for name in names:
            teacher.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name))
    latent = teacher.encode(lq)
    assert order == blocks["encoder"]
    order.clear()
    teacher.denoise(latent)
    assert order == blocks["denoiser"]
    order.clear()
    teacher.decode(latent, lq)
    assert [name for name in order if name in blocks["decoder"]] == blocks["decoder"]


def test_sensitive_layers_exist_in_their_parts(teacher):
    for part, names in teacher.sensitive().items():
        for name in names:
            assert is_layer(teacher.get_submodule(name))
            assert any(f"{name}.".startswith(f"{prefix}.") for prefix in teacher.parts()[part])


def test_entrance_and_exit_are_the_ends_of_the_denoiser(teacher, lq):
    latent = teacher.encode(lq)
    entered, left = [], []
    teacher.get_submodule(teacher.entrance).register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    teacher.get_submodule(teacher.exit).register_forward_hook(lambda _module, _args, output: left.append(output))
    epsilon = teacher.denoise(latent)
    assert torch.equal(entered[0], teacher.start(latent).latent.flatten(0, 1))
    assert torch.equal(left[0], epsilon.flatten(0, 1))


def test_concatenations_are_where_the_denoiser_concatenates(teacher, lq, monkeypatch):
    """The shortcut takes the very tensor, the first convolution of its block what normalization makes of it."""
    latent, joined, found, widths, cat = teacher.encode(lq), {}, {}, {}, torch.cat

    def noted(tensors, dim=0):
        result = cat(tensors, dim)
        if result.ndim == 4 and dim == 1:
            joined[result.data_ptr()] = (result, tensors[0].shape[1])  # Kept: no other tensor takes its place.
        return result

    def note(name):
        def hook(module, args):
            widths[name] = args[0].shape[1]
            if args[0].data_ptr() in joined:
                found[name] = joined[args[0].data_ptr()][1]

        return hook

    monkeypatch.setattr(torch, "cat", noted)
    for name, module in teacher.unet.named_modules():
        if is_layer(module):
            module.register_forward_pre_hook(note(f"unet.{name}"))
    teacher.denoise(latent)
    claimed, shortcut, first = teacher.concatenations(), "skip_connection", "in_layers.2"
    assert found and found == {name: channels for name, channels in claimed.items() if name.endswith(shortcut)}
    behind = {name.replace(shortcut, first): channels for name, channels in found.items()}
    assert behind == {name: channels for name, channels in claimed.items() if name.endswith(first)}
    assert all(widths[name] == widths[name.replace(shortcut, first)] > claimed[name] for name in found)


# Copies and files


def test_twin_is_the_same_memory_in_another_tree(teacher, lq):
    twin = teacher.twin()
    for (name, ours), (other, theirs) in zip(teacher.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == other and ours.data_ptr() == theirs.data_ptr()
    assert all(a is b for a, b in zip(teacher.parameters(), twin.parameters(), strict=True))
    before = teacher(lq)
    assert torch.equal(twin(lq), before)
    twin.set_submodule("unet.middle_block.3.temporal_attn.to_q", nn.Identity())
    twin.unet.out[2] = nn.Conv2d(64, 4, 3, padding=1)
    assert not torch.allclose(twin(lq), before)
    assert torch.equal(teacher(lq), before)


def test_a_guided_teacher_keeps_its_estimator_out_of_its_weights(panning):
    guided = micro_video_teacher(flow="dis").freeze()
    guided(panning)
    assert list(guided.state_dict()) == list(micro_video_teacher().state_dict())
    assert torch.equal(guided.twin()(panning), guided(panning))


def test_file_round_trip_is_exact_for_weights_of_16_bits(tmp_path, lq):
    original = micro_video_teacher(steps=2, start=999, color_fix="adain", noise_seed=3).freeze()
    original.load_state_dict({name: value.half().float() for name, value in original.state_dict().items()})
    save_teacher(original, tmp_path / "video.safetensors")
    loaded = load_teacher(tmp_path / "video.safetensors")
    assert isinstance(loaded, MGLDVSRTeacher) and loaded.kind == "mgldvsr"
    assert loaded.config == original.config
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in original.state_dict().items())
    assert torch.equal(loaded(lq), original(lq))


def test_random_teacher_starts_with_no_epsilon_and_depends_on_its_seed_alone(lq):
    first = build_teacher(kind="mgldvsr", seed=3, **MICRO_VIDEO)
    state = torch.random.get_rng_state()
    second, other = (build_teacher(kind="mgldvsr", seed=seed, **MICRO_VIDEO) for seed in (3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.denoise(first.encode(lq)).any()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.vae.encoder.conv_in.weight, other.vae.encoder.conv_in.weight)


# Bad arguments


def test_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"teacher\.kind takes one of \['one_step', 'mgldvsr'\], not 'mgld'"):
        build_teacher(kind="mgld")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color_fix": "sepia"}, "color_fix must be one of"),
        ({"start": 1000}, "from 0 to 999, not 1000"),
        ({"steps": 0}, "not 0"),
        ({"steps": 6, "start": 4}, "there are 1 to 5 steps, not 6"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        micro_video_teacher(**changes)


def test_clips_of_another_length_are_refused(teacher):
    with pytest.raises(ValueError, match="clips of 3"):
        teacher(torch.rand(1, 4, 3, 8, 8))
