"""The building blocks of MGLD-VSR's networks: what each of them computes, and what it lets see what."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from quantsr.teachers.mgldvsr.layers import (
    Conditions,
    Downsample,
    PositionAttention,
    ResidualBlock,
    Spade,
    SpatialTransformer,
    Stage,
    TemporalAttention,
    TemporalMixing,
    Upsample,
)

CHANNELS, FRAMES = 32, 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def conditions() -> Conditions:
    """Of two clips of three frames; structure at two levels."""
    structure = (torch.randn(6, 8, 6, 4), torch.randn(6, 8, 3, 2))
    return Conditions(torch.randn(6, 16), torch.randn(6, 5, 24), structure, FRAMES)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, CHANNELS, 6, 4)


def influenced(layer: nn.Module, x: torch.Tensor, conditions: Conditions, frame: int) -> list[bool]:
    """Which frames of the output depend on a frame of the input."""
    changed = x.clone()
    changed[frame] = torch.randn_like(changed[frame])
    with torch.no_grad():
        difference = layer(changed, conditions) - layer(x, conditions)
    return (difference.abs().amax((1, 2, 3)) > 1e-5).tolist()


def test_spade_scales_and_shifts_by_the_structure():
    layer, x, structure = Spade(64, 8), torch.randn(2, 64, 6, 4), torch.randn(2, 8, 6, 4)
    groups = x.view(2, 32, -1)
    variance, mean = torch.var_mean(groups, dim=-1, keepdim=True, correction=0)
    normalized = ((groups - mean) / (variance + 1e-5).sqrt()).view_as(x)
    hidden = F.relu(layer.mlp_shared[0](structure))
    gamma, beta = layer.mlp_gamma(hidden), layer.mlp_beta(hidden)
    assert_close(layer(x, structure), normalized * (1 + gamma) + beta)


def test_spade_is_local():
    """Structure reaches as far as two 3x3 convolutions."""
    layer, x, structure = Spade(CHANNELS, 8), torch.randn(1, CHANNELS, 9, 9), torch.randn(1, 8, 9, 9)
    changed = structure.clone()
    changed[..., 4, 4] += 1
    difference = (layer(x, changed) - layer(x, structure)).abs().amax((0, 1))
    assert difference[2:7, 2:7].all() and F.pad(difference[2:7, 2:7], (2, 2, 2, 2)).equal(difference)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("out_channels", [32, 64])
def test_residual_block(conditions, level, out_channels):
    x = torch.randn(6, CHANNELS, *conditions.structure[level].shape[-2:])
    layer = ResidualBlock(CHANNELS, out_channels, 16, 8, level)
    first, last = layer.in_layers, layer.out_layers
    h = first[2](F.silu(first[0](x))) + layer.emb_layers[1](F.silu(conditions.embedding))[:, :, None, None]
    h = layer.spade(last[3](F.silu(last[0](h))), conditions.structure[level])
    skipped = x if out_channels == CHANNELS else layer.skip_connection(x)
    assert_close(layer(x, conditions), skipped + h)


def test_residual_block_without_structure(conditions, x):
    layer = ResidualBlock(CHANNELS, CHANNELS, 16)
    assert layer.spade is None
    others = Conditions(conditions.embedding)
    assert torch.equal(layer(x, conditions), layer(x, others))


def test_sampling_halves_and_doubles(conditions, x):
    assert Downsample(CHANNELS)(x, conditions).shape == (6, CHANNELS, 3, 2)
    layer = Upsample(CHANNELS)
    assert_close(layer(x, conditions), layer.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2)))


def test_spatial_transformer_sees_one_frame_and_its_prompt(conditions, x):
    layer = SpatialTransformer(CHANNELS, 16, 24)
    assert influenced(layer, x, conditions, 1) == [False, True, False, False, False, False]
    prompt = conditions.prompt.clone()
    prompt[4] += 1
    other = Conditions(conditions.embedding, prompt, conditions.structure, FRAMES)
    difference = (layer(x, other) - layer(x, conditions)).abs().amax((1, 2, 3)) > 0
    assert difference.tolist() == [False, False, False, False, True, False]


def test_position_attention_weighs_all_positions(x):
    layer = PositionAttention(CHANNELS, 4)
    # Queries, keys and values of a head lie next to each other in the channels.
    qkv = layer.qkv(layer.norm(x.flatten(2))).view(6, 4, 3, 8, 24)
    q, k, v = qkv.unbind(2)
    weights = (q.mT @ k / 8**0.5).softmax(-1)
    expected = x.flatten(2) + layer.proj_out((v @ weights.mT).flatten(1, 2))
    assert_close(layer(x, Conditions(torch.zeros(6, 1))), expected.view_as(x))


@pytest.mark.parametrize(
    "layer", [lambda: TemporalAttention(CHANNELS, 16), lambda: TemporalMixing(CHANNELS)], ids=["attention", "mixing"]
)
def test_temporal_layers_start_as_the_identity(layer, conditions, x):
    assert torch.equal(layer()(x, conditions), x)


def test_temporal_attention_mixes_all_frames_of_a_clip(conditions, x):
    layer = TemporalAttention(CHANNELS, 16)
    nn.init.constant_(layer.temporal_alpha, 0.25)
    assert influenced(layer, x, conditions, 0) == [True, True, True, False, False, False]
    assert influenced(layer, x, conditions, 4) == [False, False, False, True, True, True]


def test_temporal_attention_is_a_blend_at_every_position(conditions, x):
    layer = TemporalAttention(CHANNELS, 16)
    nn.init.constant_(layer.temporal_alpha, 0.25)
    tokens = x[3:, :, 2, 1]  # Of one position, the second clip's.
    attended = layer.temporal_attn(layer.norm(tokens)[None])[0]
    assert_close(layer(x, conditions)[3:, :, 2, 1], 0.25 * attended + 0.75 * tokens)


def test_temporal_mixing_reaches_the_neighbouring_frames(conditions, x):
    layer = TemporalMixing(CHANNELS)
    nn.init.constant_(layer.temporal_alpha, 0.25)
    assert influenced(layer, x, conditions, 2) == [False, True, True, False, False, False]


def test_a_stage_runs_its_layers_in_order(conditions, x):
    layers = [ResidualBlock(CHANNELS, 64, 16, 8), Downsample(64)]
    stage = Stage(layers)
    assert list(stage.state_dict()) == [f"{i}.{name}" for i in (0, 1) for name in layers[i].state_dict()]
    assert torch.equal(stage(x, conditions), layers[1](layers[0](x, conditions), conditions))
