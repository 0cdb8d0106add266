"""The video autoencoder computes what the authors' code computes, clip by clip, and names its blocks truthfully."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.testing import assert_close

from quantsr.quant.prepare import is_layer
from quantsr.teachers.mgldvsr.temporal import TemporalConv
from quantsr.teachers.mgldvsr.vae import VideoAutoencoder

REFERENCE = Path(__file__).parents[4] / "shared" / "reference" / "mgldvsr_video_vae_tiny.safetensors"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def micro(multipliers=(1, 1, 1), blocks_per_level=1, alpha=0.3, **config) -> VideoAutoencoder:
    """A random autoencoder of 32 channels whose temporal layers do something."""
    torch.manual_seed(0)
    vae = VideoAutoencoder(32, multipliers, blocks_per_level, **{"frames": 3, **config})
    for module in vae.modules():
        if isinstance(module, TemporalConv):
            nn.init.constant_(module.temporal_alpha, alpha)
    return vae


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    return micro().requires_grad_(False)


def reconstruct(vae: VideoAutoencoder, images: torch.Tensor) -> torch.Tensor:
    moments, features = vae.encode(images)
    return vae.decode(moments.chunk(2, dim=1)[0], features)


# The reference


@pytest.fixture(scope="module")
def reference() -> tuple[VideoAutoencoder, dict[str, torch.Tensor]]:
    if not REFERENCE.is_file():
        pytest.skip("reference vectors (../shared/reference) are not here")
    with safe_open(REFERENCE, "pt") as file:
        vectors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["vae_config"])
    vae = VideoAutoencoder(
        config["ch"], config["ch_mult"], config["num_res_blocks"], config["z_channels"], config["num_frames"]
    )
    vae.load_state_dict({key: value for key, value in vectors.items() if key.startswith(PARTS)}, strict=True)
    return vae.requires_grad_(False), vectors


def assert_agrees(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_moments_agree_with_the_reference(reference):
    vae, vectors = reference
    assert_agrees(vae.encode(vectors["in.frames"])[0], vectors["mid.moments"])


def test_decoded_frames_agree_with_the_reference(reference):
    vae, vectors = reference
    features = vae.encode(vectors["in.frames"])[1]
    assert_agrees(vae.decode(vectors["in.latent"], features), vectors["out.frames"])


# Temporal convolution


def test_temporal_convolution_starts_as_the_identity():
    x = torch.randn(6, 4, 5, 7)
    assert torch.equal(TemporalConv(4)(x, 3), x)


def test_temporal_convolution_blends_a_pixel_with_its_neighbours_in_time():
    layer, x = TemporalConv(4), torch.randn(3, 4, 2, 2)
    nn.init.constant_(layer.temporal_alpha, 0.25)
    before, own, after = layer.temporal_conv.weight[..., 0, 0].unbind(-1)
    convolved = before @ x[0].flatten(1) + own @ x[1].flatten(1) + after @ x[2].flatten(1)
    convolved = convolved + layer.temporal_conv.bias[:, None]
    assert_close(layer(x, 3)[1].flatten(1), 0.25 * convolved + 0.75 * x[1].flatten(1))


def test_temporal_convolution_reaches_one_frame_and_not_another_clip():
    layer, x = TemporalConv(4), torch.randn(8, 4, 2, 2)
    nn.init.ones_(layer.temporal_alpha)
    changed = x.clone()
    changed[3] += 1  # The last frame of the first of two clips.
    difference = (layer(changed, 4) - layer(x, 4)).abs().amax((1, 2, 3))
    assert (difference > 0).tolist() == [False, False, True, True, False, False, False, False]


def test_a_batch_of_broken_clips_is_refused(vae):
    with pytest.raises(ValueError, match="clips of 3"):
        TemporalConv(4)(torch.zeros(4, 4, 2, 2), 3)
    with pytest.raises(ValueError, match="clips of 3"):
        vae.decode(torch.zeros(4, 4, 2, 2), [torch.zeros(4, 32, 4, 4)])


# Autoencoder


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2), (1, 1, 2, 2), (1, 1, 1, 1, 2)], ids=len)
def test_any_number_of_levels(multipliers):
    vae = micro(multipliers, latent_channels=2).requires_grad_(False)
    images = torch.randn(3, 3, 32, 16)
    assert vae.factor == 2 ** (len(multipliers) - 1)
    moments, features = vae.encode(images)
    assert moments.shape == (3, 4, 32 // vae.factor, 16 // vae.factor)
    assert len(features) == max(len(multipliers) - 2, 0)
    assert vae.decode(moments[:, :2], features).shape == images.shape


def test_features_are_the_last_blocks_of_the_levels(vae):
    images, outputs = torch.randn(1, 3, 16, 24), []
    handles = [
        level["block"][-1].register_forward_hook(lambda *call: outputs.append(call[-1])) for level in vae.encoder.down
    ]
    features = vae.encoder.features(images)
    for handle in handles:
        handle.remove()
    assert [tuple(f.shape) for f in features] == [(1, 32, 16, 24), (1, 32, 8, 12), (1, 32, 4, 6)]
    assert all(torch.equal(f, output) for f, output in zip(features, outputs, strict=True))
    assert all(torch.equal(f, g) for f, g in zip(vae.encode(images)[1], features[1:-1], strict=True))


def test_frames_of_a_clip_mix_and_clips_do_not(vae):
    clips = torch.randn(6, 3, 16, 16)
    whole = reconstruct(vae, clips)
    assert_close(whole, torch.cat([reconstruct(vae, clip) for clip in clips.split(3)]), atol=1e-5, rtol=1e-4)
    changed = clips.clone()
    changed[2] = -changed[2]
    difference = (reconstruct(vae, changed) - whole).abs().amax((1, 2, 3))
    assert (difference[:3] > 1e-4).all() and (difference[3:] < 1e-5).all()


def test_fusion_weight_scales_what_the_encoder_adds():
    images = torch.randn(3, 3, 16, 16)
    vae = micro(fusion_weight=0.0).requires_grad_(False)
    moments, features = vae.encode(images)
    latent, others = moments[:, :4], [torch.randn_like(f) for f in features]
    assert torch.equal(vae.decode(latent, features), vae.decode(latent, others))
    full = micro(fusion_weight=1.0).requires_grad_(False)
    assert not torch.allclose(full.decode(latent, features), full.decode(latent, others))
    fusion = full.decoder.fusion_layer_1
    decoded = torch.randn_like(features[0])
    whole = fusion(features[0], decoded)
    fusion.weight = 0.5
    assert_close(fusion(features[0], decoded), (whole + decoded) / 2)


def test_attention_weighs_all_positions(vae):
    attention = vae.decoder.mid["attn_1"]
    x = torch.randn(2, 32, 3, 5)
    q, k, v = (layer(attention.norm(x)).flatten(2) for layer in (attention.q, attention.k, attention.v))
    weights = (q.mT @ k / 32**0.5).softmax(-1)
    expected = x + attention.proj_out((v @ weights.mT).view_as(x))
    assert_close(attention(x), expected)


def test_every_parameter_learns():
    vae = micro()
    moments, features = vae.encode(torch.randn(3, 3, 16, 16))
    mean, log_variance = moments.chunk(2, dim=1)
    latent = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    vae.decode(latent, features).square().mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias can be without effect: the softmax ignores that of the keys, a normalization the one before it.
        assert name.endswith("bias") or parameter.grad.abs().max() > 0, name


def test_alpha_learns_from_the_identity():
    vae = micro(alpha=0.0)
    reconstruct(vae, torch.randn(3, 3, 16, 16)).square().mean().backward()
    alphas = [p.grad for name, p in vae.named_parameters() if name.endswith("temporal_alpha")]
    assert len(alphas) == 7 and all(grad.abs() > 0 for grad in alphas)


@pytest.mark.parametrize("size", [(18, 16), (16, 17)], ids=str)
def test_a_size_that_does_not_divide_is_refused(vae, size):
    with pytest.raises(ValueError, match="multiple of 4"):
        vae.encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_features_is_refused(vae, count):
    with pytest.raises(ValueError):
        vae.decode(torch.zeros(3, 4, 2, 2), [torch.zeros(3, 32, 4, 4)] * count)


# Blocks


@pytest.mark.parametrize("config", [((1, 2, 2), 1), ((1, 1, 1, 1), 2), ((1,), 1)], ids=str)
def test_blocks_hold_every_layer_once(config):
    vae = micro(*config)
    names = [name for part in vae.blocks().values() for name in part]
    held = [
        f"{block}.{name}".rstrip(".")
        for block in names
        for name, module in vae.get_submodule(block).named_modules()
        if is_layer(module)
    ]
    assert sorted(held) == sorted(name for name, module in vae.named_modules() if is_layer(module))


@pytest.mark.parametrize("config", [((1, 2, 2), 1), ((1, 1, 1, 1), 2), ((1,), 1)], ids=str)
def test_blocks_are_in_execution_order(config):
    vae, called = micro(*config).requires_grad_(False), []
    blocks = vae.blocks()
    for name in [*blocks["encoder"], *blocks["decoder"]]:
        vae.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    moments, features = vae.encode(torch.randn(3, 3, 16, 16))
    assert called == blocks["encoder"]
    called.clear()
    vae.decode(moments[:, :4], features)
    assert called == blocks["decoder"]


def test_layers_are_plain_modules_with_numeric_padding(vae):
    layers = [module for module in vae.modules() if is_layer(module)]
    assert {type(layer) for layer in layers} == {nn.Conv2d, nn.Conv3d}
    assert all(layer.padding_mode == "zeros" and not isinstance(layer.padding, str) for layer in layers)


def test_full_size():
    with torch.device("meta"):
        vae = VideoAutoencoder(128, (1, 2, 4, 4), 2)
        moments, features = vae.encode(torch.empty(5, 3, 64, 64))
        images = vae.decode(moments[:, :4], features)
    assert vae.factor == 8 and images.shape == (5, 3, 64, 64)
    assert [tuple(f.shape) for f in features] == [(5, 256, 32, 32), (5, 512, 16, 16)]
    fusions = [name for name in vae.blocks()["decoder"] if "fusion" in name]
    assert fusions == ["decoder.fusion_layer_2", "decoder.fusion_layer_1"]
