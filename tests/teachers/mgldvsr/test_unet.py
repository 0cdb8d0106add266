"""The denoiser computes what the authors' code computes, has their names, and keeps clips apart."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

from quantsr.quant.prepare import is_layer
from quantsr.teachers.mgldvsr.checkpoints import FULL_SIZE
from quantsr.teachers.mgldvsr.unet import TimestepEmbedding, VideoUNet

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
SHAPES = {
    "tiny": {"channel_multipliers": [2, 2], "blocks_per_level": 1, "attention_levels": [1]},
    "deep": {"channel_multipliers": [2, 3, 2], "blocks_per_level": 2, "attention_levels": [0, 2]},
    "flat": {"channel_multipliers": [2], "blocks_per_level": 1, "attention_levels": []},
}
"""At least 64 channels: normalized in 32 groups of one channel, the timestep would cancel out."""


def micro(shape: str = "tiny", alpha: float = 0.25) -> VideoUNet:
    """A random denoiser of clips of 3 frames whose temporal layers mix with weight ``alpha``."""
    torch.manual_seed(0)
    unet = VideoUNet(32, **SHAPES[shape], head_channels=16, prompt_channels=24, structure_channels=8, frames=3)
    for name, parameter in unet.named_parameters():
        if name.endswith("temporal_alpha"):
            nn.init.constant_(parameter, alpha)
    return unet


def inputs(clips: int = 1, levels: int = 2, size: int = 8) -> list:
    """What ``forward`` takes, for clips of 3 frames."""
    generator = torch.Generator().manual_seed(clips)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(3 * clips, *shape, generator=generator)

    structure = [random(8, size // 2**level, size // 2**level) for level in range(levels)]
    return [random(4, size, size), torch.full((3 * clips,), 500), structure, random(5, 24)]


def split(values: list) -> list[list]:
    """The same inputs, clip by clip."""
    x, timesteps, structure, prompt = values
    pyramid = zip(*(features.split(3) for features in structure), strict=True)
    return [list(clip) for clip in zip(x.split(3), timesteps.split(3), pyramid, prompt.split(3), strict=True)]


# The reference


def test_epsilon_agrees_with_the_reference():
    path = REFERENCE / "mgldvsr_tiny.safetensors"
    if not path.is_file():
        pytest.skip("reference vectors (../shared/reference) are not here")
    with safe_open(path, "pt") as file:
        vectors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["unet_config"])
    unet = VideoUNet(
        config["model_channels"],
        config["channel_mult"],
        config["num_res_blocks"],
        range(len(config["channel_mult"])),
        config["num_head_channels"],
        config["context_dim"],
        config["semb_channels"],
        config["in_channels"],
        config["num_frames"],
    )
    weights = {key.removeprefix("unet."): value for key, value in vectors.items() if key.startswith("unet.")}
    unet.load_state_dict(weights, strict=True)
    structure = [value for key, value in vectors.items() if key.startswith("mid.struct_cond.")]
    structure.sort(key=lambda features: -features.shape[-1])
    with torch.no_grad():
        ours = unet(vectors["in.x"], vectors["in.timesteps"], structure, vectors["in.context"])
    theirs = vectors["out.y"]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_names_and_shapes_at_full_size_are_the_released_ones():
    path = REFERENCE / "mgldvsr_unet_keys.json"
    if not path.is_file():
        pytest.skip("the released names (../shared/reference) are not here")
    with torch.device("meta"):
        unet = VideoUNet(**FULL_SIZE["unet"])
    ours = {name: list(tensor.shape) for name, tensor in unet.state_dict().items()}
    assert ours == json.loads(path.read_text())["state_dict"]


def test_full_size():
    with torch.device("meta"):
        unet = VideoUNet(**FULL_SIZE["unet"])
        structure = [torch.empty(5, 256, side, side) for side in (64, 32, 16, 8)]
        epsilon = unet(torch.empty(5, 4, 64, 64), torch.empty(5), structure, torch.empty(5, 77, 1024))
    assert epsilon.shape == (5, 4, 64, 64)
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e5) == 9353


# What depends on what


@pytest.mark.parametrize("shape", SHAPES)
def test_epsilon_has_the_shape_of_the_latent(shape):
    values = inputs(levels=len(SHAPES[shape]["channel_multipliers"]))
    assert micro(shape)(*values).shape == values[0].shape


def test_clips_of_a_batch_do_not_mix():
    unet, values = micro().requires_grad_(False), inputs(clips=2)
    assert_close(unet(*values), torch.cat([unet(*clip) for clip in split(values)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "expected"), [(0.25, [True, True, True]), (0.0, [False, True, False])])
def test_frames_of_a_clip_mix_through_the_temporal_layers_alone(alpha, expected):
    unet, (x, *conditions) = micro(alpha=alpha).requires_grad_(False), inputs()
    changed = x.clone()
    changed[1] = -changed[1]
    difference = (unet(changed, *conditions) - unet(x, *conditions)).abs().amax((1, 2, 3))
    assert (difference > 1e-6).tolist() == expected


@pytest.mark.parametrize("number", [1, 2, 3], ids=["timesteps", "structure", "prompt"])
def test_every_condition_matters(number):
    unet, values = micro().requires_grad_(False), inputs()
    before = unet(*values)
    values[number] = [-f for f in values[number]] if number == 2 else values[number] / 2
    assert (unet(*values) - before).abs().max() > 1e-3


def test_every_parameter_learns():
    unet = micro("deep")
    unet(*inputs(levels=3)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.endswith("bias") or parameter.grad.abs().max() > 0, name


def test_timestep_embedding_tells_timesteps_apart():
    embedding = TimestepEmbedding(32)(torch.tensor([0, 1, 500, 999]), torch.float32)
    assert embedding.shape == (4, 128)
    assert (torch.pdist(embedding) > 1e-3).all()


def test_a_batch_of_broken_clips_is_refused():
    x, timesteps, structure, prompt = inputs()
    with pytest.raises(ValueError, match="clips of 3"):
        micro()(x[:2], timesteps[:2], [features[:2] for features in structure], prompt[:2])


# Blocks


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_hold_every_layer_once(shape):
    unet = micro(shape)
    held = [
        f"{block}.{name}".rstrip(".")
        for block in unet.blocks()
        for name, module in unet.get_submodule(block).named_modules()
        if is_layer(module)
    ]
    assert sorted(held) == sorted(name for name, module in unet.named_modules() if is_layer(module))


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_in_execution_order(shape):
    unet, called = micro(shape).requires_grad_(False), []
    for name in unet.blocks():
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    unet(*inputs(levels=len(SHAPES[shape]["channel_multipliers"])))
    assert called == unet.blocks()


def test_layers_are_plain_modules_with_numeric_padding():
    layers = [module for module in micro().modules() if is_layer(module)]
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Conv2d, nn.Conv3d}
    assert all(not isinstance(getattr(layer, "padding", 0), str) for layer in layers)
