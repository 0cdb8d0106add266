"""The structure encoder computes what the authors' code computes, has their names, and looks at frames one by one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from quantsr.quant.prepare import is_layer
from quantsr.teachers.mgldvsr.checkpoints import FULL_SIZE
from quantsr.teachers.mgldvsr.structure import StructureEncoder

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
SHAPES = {
    "tiny": {"channel_multipliers": [1, 1], "blocks_per_level": 1, "attention_levels": [1]},
    "deep": {"channel_multipliers": [1, 2, 1], "blocks_per_level": 2, "attention_levels": [0, 2]},
    "flat": {"channel_multipliers": [1], "blocks_per_level": 1, "attention_levels": []},
}


def micro(shape: str = "tiny") -> StructureEncoder:
    torch.manual_seed(0)
    return StructureEncoder(32, **SHAPES[shape], heads=4, out_channels=64)


def latents(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 8, 16, generator=torch.Generator().manual_seed(count))


def test_features_agree_with_the_reference():
    path = REFERENCE / "mgldvsr_tiny.safetensors"
    if not path.is_file():
        pytest.skip("reference vectors (../shared/reference) are not here")
    with safe_open(path, "pt") as file:
        vectors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["struct_cond_encoder_config"])
    encoder = StructureEncoder(
        config["model_channels"],
        config["channel_mult"],
        config["num_res_blocks"],
        range(len(config["channel_mult"])),
        config["num_heads"],
        config["out_channels"],
        config["in_channels"],
    )
    own = "struct_cond_encoder."
    weights = {key.removeprefix(own): value for key, value in vectors.items() if key.startswith(own)}
    encoder.load_state_dict(weights, strict=True)
    with torch.no_grad():
        features = encoder(vectors["in.struct_latent"], vectors["in.timesteps"])
    assert len(features) == 2
    for ours in features:
        theirs = vectors[f"mid.struct_cond.{ours.shape[-1]}"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_names_and_shapes_at_full_size_are_the_released_ones():
    path = REFERENCE / "mgldvsr_struct_cond_encoder_keys.json"
    if not path.is_file():
        pytest.skip("the released names (../shared/reference) are not here")
    with torch.device("meta"):
        encoder = StructureEncoder(**FULL_SIZE["structure"])
    ours = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert ours == json.loads(path.read_text())["state_dict"]


def test_full_size():
    with torch.device("meta"):
        encoder = StructureEncoder(**FULL_SIZE["structure"])
        features = encoder(torch.empty(5, 4, 64, 64), torch.empty(5))
    assert [tuple(f.shape) for f in features] == [(5, 256, side, side) for side in (64, 32, 16, 8)]
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e5) == 525


@pytest.mark.parametrize("shape", SHAPES)
def test_features_of_every_level_finest_first(shape):
    features = micro(shape)(latents(), torch.full((3,), 500))
    levels = len(SHAPES[shape]["channel_multipliers"])
    assert [tuple(f.shape) for f in features] == [(3, 64, 8 // 2**i, 16 // 2**i) for i in range(levels)]


def test_frames_do_not_mix():
    encoder, timesteps = micro().requires_grad_(False), torch.tensor([0, 500, 999])
    together = encoder(latents(), timesteps)
    alone = [encoder(x, t) for x, t in zip(latents().split(1), timesteps.split(1), strict=True)]
    for level, features in enumerate(together):
        assert_close(features, torch.cat([one[level] for one in alone]), atol=1e-5, rtol=1e-4)


def test_features_know_the_timestep():
    encoder = micro().requires_grad_(False)
    early, late = (encoder(latents(), torch.full((3,), t)) for t in (999, 0))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(early, late, strict=True))


def test_every_parameter_learns():
    encoder = micro("deep")
    sum(f.square().mean() for f in encoder(latents(), torch.full((3,), 500))).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert name.endswith("bias") or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_hold_every_layer_once_in_execution_order(shape):
    encoder, called = micro(shape).requires_grad_(False), []
    blocks = encoder.blocks()
    held = [
        f"{block}.{name}".rstrip(".")
        for block in blocks
        for name, module in encoder.get_submodule(block).named_modules()
        if is_layer(module)
    ]
    assert sorted(held) == sorted(name for name, module in encoder.named_modules() if is_layer(module))
    for name in blocks:
        encoder.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.append(name))
    encoder(latents(), torch.full((3,), 500))
    assert called == blocks
