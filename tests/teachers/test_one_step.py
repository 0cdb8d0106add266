"""The one-step teacher keeps the contract, at any image size, and names its modules truthfully."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from quantsr.enlarging import KERNELS, bicubic
from quantsr.errors import UserError
from quantsr.quant.prepare import is_layer
from quantsr.teachers.files import build_teacher
from quantsr.teachers.micro import MICRO
from tests.conftest import micro_teacher

SIZES = [(8, 8), (7, 9), (1, 1), (5, 16), (3, 2)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_output_is_four_times_the_input_and_in_range(teacher, size):
    lq = torch.rand(2, 3, *size)
    sr = teacher(lq)
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert sr.min() >= 0 and sr.max() <= 1 and sr.isfinite().all()


@pytest.mark.parametrize("scale", [1, 2, 4], ids=lambda scale: f"scale {scale}")
@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_scale_and_colour_correction_are_arguments(scale, color_fix):
    teacher = micro_teacher(scale=scale, color_fix=color_fix).freeze()
    assert teacher(torch.rand(1, 3, 9, 11)).shape == (1, 3, 9 * scale, 11 * scale)


def test_batch_does_not_matter(teacher, lq):
    assert_close(teacher(lq), torch.cat([teacher(one[None]) for one in lq]), atol=1e-5, rtol=1e-5)


def test_parts_in_a_row_are_the_whole(teacher, lq):
    latent = teacher.encode(lq)
    epsilon = teacher.denoise(latent)
    assert epsilon.shape == latent.shape == (2, 4, 16, 16)
    clean = teacher.clean(latent, epsilon)
    assert teacher.decode(clean, lq).shape == (2, 3, 32, 32)
    assert torch.equal(teacher.render(clean, lq).clamp(0, 1), teacher(lq))


@pytest.mark.parametrize("timestep", [0, 249, 999])
def test_clean_latent_follows_the_schedule(timestep):
    teacher = micro_teacher(timestep=timestep)
    latent, epsilon = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    clean = teacher.clean(latent, epsilon)
    # Noising z_H again with that epsilon leads back to z_L: z_L = sqrt(abar) z_H + sqrt(1 - abar) eps.
    steps = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert_close(steps.add_noise(clean, epsilon, torch.tensor([timestep])), latent, atol=1e-4, rtol=1e-4)
    abar = steps.alphas_cumprod[timestep].item()
    assert_close(clean, (latent - math.sqrt(1 - abar) * epsilon) / math.sqrt(abar))


def test_schedule_is_an_argument():
    other = micro_teacher(schedule={"beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "linear"})
    assert other.signal != micro_teacher().signal


def test_same_latent_every_time(teacher, lq):
    assert torch.equal(teacher.encode(lq), teacher.encode(lq))


def test_blocks_run_in_the_order_of_their_names(teacher, lq):
    order, names = [], [name for names in teacher.blocks().values() for name in names]
    for name in names:
        teacher.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: order.append(name))
    teacher(lq)
    assert order == names


@pytest.mark.parametrize("layers", [1, 2], ids=lambda layers: f"{layers} layers per block")
def test_every_layer_is_in_one_block_of_its_part(layers):
    vae, unet = (MICRO[network] | {"layers_per_block": layers} for network in ("vae", "unet"))
    teacher = micro_teacher(vae=vae, unet=unet)
    blocks, parts = teacher.blocks(), teacher.parts()
    for name, module in teacher.named_modules():
        if is_layer(module):
            inside = f"{name}."
            part = next(part for part, prefixes in parts.items() if any(inside.startswith(f"{x}.") for x in prefixes))
            owners = [block for part in blocks for block in blocks[part] if inside.startswith(f"{block}.")]
            assert len(owners) == 1 and owners[0] in blocks[part], name


def test_parts_share_out_all_layers(teacher):
    parts = teacher.parts()
    assert list(parts) == ["encoder", "denoiser", "decoder"]
    for name, module in teacher.named_modules():
        if is_layer(module):
            owners = [p for p, prefixes in parts.items() for x in prefixes if f"{name}.".startswith(f"{x}.")]
            assert len(owners) == 1, f"{name} is in {owners}"


def test_sensitive_layers_exist_in_their_parts(teacher):
    for part, names in teacher.sensitive().items():
        for name in names:
            assert is_layer(teacher.get_submodule(name))
            assert any(f"{name}.".startswith(f"{prefix}.") for prefix in teacher.parts()[part])


def test_twin_is_the_same_memory_in_another_tree(teacher, lq):
    twin = teacher.twin()
    for (name, ours), (other, theirs) in zip(teacher.state_dict().items(), twin.state_dict().items(), strict=True):
        assert name == other and ours.data_ptr() == theirs.data_ptr()
    assert all(a is b for a, b in zip(teacher.parameters(), twin.parameters(), strict=True))
    assert torch.equal(twin(lq), teacher(lq))
    before = teacher(lq)
    twin.unet.conv_out = torch.nn.Identity()
    twin.vae.decoder.up_blocks[0].resnets[0].conv1 = torch.nn.Identity()
    assert isinstance(teacher.unet.conv_out, torch.nn.Conv2d)
    assert torch.equal(teacher(lq), before)


def test_twin_of_a_frozen_teacher_is_frozen(teacher):
    twin = teacher.twin()
    assert not twin.training and not any(parameter.requires_grad for parameter in twin.parameters())


def test_random_teacher_starts_with_no_epsilon_and_depends_on_its_seed_alone(lq):
    first = build_teacher(3, **MICRO)
    state = torch.random.get_rng_state()
    second, other = build_teacher(3, **MICRO), build_teacher(4, **MICRO)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.denoise(first.encode(lq)).any()
    assert torch.equal(first.vae.encoder.conv_in.weight, second.vae.encoder.conv_in.weight)
    assert not torch.equal(first.vae.encoder.conv_in.weight, other.vae.encoder.conv_in.weight)


def test_unknown_colour_correction_is_refused():
    with pytest.raises((UserError, ValueError), match="color_fix"):
        micro_teacher(color_fix="sepia")


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match=r"bicubic must be one of .*torch.*pillow"):
        micro_teacher(bicubic="lanczos")


def test_the_input_is_enlarged_as_it_is_told(lq):
    for kernel in KERNELS:
        assert torch.equal(micro_teacher(bicubic=kernel).upscale(lq), bicubic(lq, 4, kernel))


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_impossible_timestep_is_refused(timestep):
    with pytest.raises((UserError, ValueError), match="timestep"):
        micro_teacher(timestep=timestep)


@pytest.mark.parametrize("timestep", [0, 249, 999])
def test_a_retimed_teacher_is_one_built_at_that_timestep(timestep, lq):
    teacher, other = micro_teacher(timestep=499), micro_teacher(timestep=timestep)
    assert teacher.retime(timestep) is teacher
    assert (teacher.timestep, teacher.signal, teacher.noise) == (timestep, other.signal, other.noise)
    assert teacher.config == other.config
    assert torch.equal(teacher.freeze()(lq), other.freeze()(lq))


def test_retiming_a_twin_leaves_the_original(teacher, lq):
    before, twin = teacher(lq), teacher.twin().retime(99)
    assert (teacher.timestep, teacher.config["timestep"]) == (499, 499)
    assert torch.equal(teacher(lq), before) and not torch.equal(twin(lq), before)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_retiming_to_an_impossible_timestep_is_refused_and_changes_nothing(teacher, timestep):
    signal = teacher.signal
    with pytest.raises(ValueError, match="timestep must be from 0 to 999"):
        teacher.retime(timestep)
    assert (teacher.timestep, teacher.config["timestep"], teacher.signal) == (499, 499, signal)


def test_concatenations_are_where_the_denoiser_concatenates(teacher, monkeypatch):
    """The shortcut takes the very tensor, the first convolution of its block what normalization makes of it."""
    latent, joined, found, widths, cat = torch.randn(1, 4, 16, 16), {}, {}, {}, torch.cat

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
    claimed, shortcut, first = teacher.concatenations(), "conv_shortcut", "conv1"
    assert found and found == {name: channels for name, channels in claimed.items() if name.endswith(shortcut)}
    behind = {name.replace(shortcut, first): channels for name, channels in found.items()}
    assert behind == {name: channels for name, channels in claimed.items() if name.endswith(first)}
    assert all(widths[name] == widths[name.replace(shortcut, first)] > claimed[name] for name in found)
