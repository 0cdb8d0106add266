"""What is measured at a layer."""

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from quantsr.methods.quantvsr.complexity import (
    ComplexityProbe,
    Samples,
    merge,
    spatial_complexity,
    temporal_complexity,
)
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import recipe

CHANNELS, FRAMES = 6, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_complexities_are_those_of_the_definition():
    x = torch.randn(FRAMES, CHANNELS, 20)
    deviations = [np.std(x[t, c].numpy(), ddof=1) for t in range(FRAMES) for c in range(CHANNELS)]
    changes = [((x[t + 1] - x[t]) ** 2).sum() / (CHANNELS * 20) for t in range(FRAMES - 1)]
    assert spatial_complexity(x).item() == pytest.approx(np.mean(deviations))
    assert temporal_complexity(x).item() == pytest.approx(np.mean(changes))


def test_flat_frames_have_no_spatial_and_still_clips_no_temporal_complexity():
    flat = torch.randn(FRAMES, CHANNELS, 1).expand(-1, -1, 20)
    still = torch.randn(1, CHANNELS, 20).expand(FRAMES, -1, -1)
    assert spatial_complexity(flat) == pytest.approx(0, abs=1e-6) and temporal_complexity(flat) > 0
    assert temporal_complexity(still) == 0 and spatial_complexity(still) > 0
    assert temporal_complexity(still[:1]) == 0


@pytest.mark.parametrize("factor", [0.5, -3.0])
def test_a_factor_counts_once_in_space_and_twice_in_time(factor):
    x = torch.randn(FRAMES, CHANNELS, 20)
    torch.testing.assert_close(spatial_complexity(factor * x), abs(factor) * spatial_complexity(x))
    torch.testing.assert_close(temporal_complexity(factor * x), factor**2 * temporal_complexity(x))


def test_an_offset_and_the_order_of_positions_count_for_nothing():
    x = torch.randn(FRAMES, CHANNELS, 20)
    for other in (x + torch.randn(CHANNELS, 1), x[..., torch.randperm(20)]):
        torch.testing.assert_close(spatial_complexity(other), spatial_complexity(x))
        torch.testing.assert_close(temporal_complexity(other), temporal_complexity(x))


def test_half_precision_inputs_are_measured_in_float32():
    x = (300 * torch.randn(FRAMES, CHANNELS, 20)).half()
    with torch.autocast("cpu", torch.bfloat16):
        found = spatial_complexity(x), temporal_complexity(x)
    assert all(value.dtype == torch.float32 for value in found)
    assert torch.equal(torch.stack(found), torch.stack([spatial_complexity(x.float()), temporal_complexity(x.float())]))
    assert found[1].isfinite()


def test_complexities_agree_with_the_authors(reference):
    for i in range(6):
        x = rearrange(reference[f"x.{i}"], "t c h w -> t c (h w)")
        torch.testing.assert_close(spatial_complexity(x), reference[f"spatial.{i}"][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(temporal_complexity(x), reference[f"temporal.{i}"][0], rtol=1e-5, atol=0)


# The probe.


class Layered(nn.Module):
    """Runs a layer of every kind on its own input."""

    def __init__(self):
        super().__init__()
        modules = {
            "conv2d": nn.Conv2d(CHANNELS, 2, 1),
            "temporal_conv": nn.Conv3d(CHANNELS, 2, 1),
            "conv1d": nn.Conv1d(CHANNELS, 2, 1),
            "to_q": nn.Linear(CHANNELS, 2),
            "temporal_attn": nn.ModuleDict({"to_q": nn.Linear(CHANNELS, 2)}),
            "emb_layers": nn.Linear(CHANNELS, 2),
            "pooled": nn.Conv2d(CHANNELS, 2, 1),
        }
        self.layers = nn.ModuleDict(modules)
        for name, module in list(self.layers.named_modules()):
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                layer = QuantizedLayer(module, recipe())
                layer.mode = "full_precision"
                self.layers.set_submodule(name, layer)

    def quantized(self) -> dict[str, QuantizedLayer]:
        return {name: module for name, module in self.layers.named_modules() if isinstance(module, QuantizedLayer)}

    def forward(self, clips: Tensor) -> None:
        """Runs on features ``(b, t, c, h, w)``, brought to the layout of each layer."""
        layouts = {
            "conv2d": "b t c h w -> (b t) c h w",
            "temporal_conv": "b t c h w -> b c t h w",
            "conv1d": "b t c h w -> (b t) c (h w)",
            "to_q": "b t c h w -> (b t) (h w) c",
            "temporal_attn.to_q": "b t c h w -> (b h w) t c",
        }
        for name, layout in layouts.items():
            self.layers.get_submodule(name)(rearrange(clips, layout))
        self.layers["emb_layers"](clips.mean((3, 4)).flatten(0, 1))
        self.layers["pooled"](clips.mean((3, 4), keepdim=True).flatten(0, 1))


def measure(model: Layered, clips: Tensor, frames: int = FRAMES) -> Samples:
    with ComplexityProbe(model.quantized(), frames) as probe:
        model(clips)
    return probe.samples


def test_every_layout_gives_the_same_numbers_and_every_clip_its_own():
    clips = torch.randn(2, FRAMES, CHANNELS, 4, 3) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1)
    expected = [
        (spatial_complexity(clip).item(), temporal_complexity(clip).item())
        for clip in rearrange(clips, "b t c h w -> b t c (h w)")
    ]
    samples = measure(Layered(), clips)
    assert set(samples) == {"conv2d", "temporal_conv", "conv1d", "to_q", "temporal_attn.to_q"}
    for noted in samples.values():
        assert noted == [pytest.approx(pair) for pair in expected]
        assert all(type(value) is float for pair in noted for value in pair)


def test_every_image_is_a_sample_without_motion():
    images = torch.randn(3, 1, CHANNELS, 4, 3)
    for noted in measure(Layered(), images, frames=1).values():
        assert [temporal for _, temporal in noted] == [0, 0, 0]
        assert [spatial for spatial, _ in noted] == [pytest.approx(spatial_complexity(x.flatten(2))) for x in images]


def test_samples_add_up_over_runs_and_passes_but_a_failed_pass_leaves_none():
    model, clips = Layered(), torch.randn(1, FRAMES, CHANNELS, 4, 3)
    probe = ComplexityProbe(model.quantized(), FRAMES)
    with probe:
        model(clips)
        model(2 * clips)
    with probe:
        model(clips)
    kept = merge([probe.samples])
    assert all(len(noted) == 3 and noted[0] == noted[2] != noted[1] for noted in kept.values())
    with pytest.raises(RuntimeError, match="stop"), probe:
        model(clips)
        raise RuntimeError("stop")
    assert probe.samples == kept


def test_hooks_are_there_inside_the_probe_only():
    model, clips = Layered(), torch.randn(1, FRAMES, CHANNELS, 4, 3)

    def hooks() -> int:
        return sum(len(layer._forward_pre_hooks) for layer in model.quantized().values())

    probe = ComplexityProbe(model.quantized(), FRAMES)
    assert hooks() == 0
    with probe:
        assert hooks() == len(model.quantized())
    assert hooks() == 0
    with pytest.raises(ValueError), probe:
        model(clips[:, :3])
    assert hooks() == 0
    model(clips)
    assert probe.samples == {}


def test_outputs_and_gradients_do_not_notice_the_probe():
    model, x = Layered(), torch.randn(FRAMES, CHANNELS, 4, 3, requires_grad=True)
    layer = model.quantized()["conv2d"]
    before = torch.autograd.grad(layer(x).square().sum(), x)
    with ComplexityProbe({"conv2d": layer}, FRAMES):
        assert torch.equal(torch.autograd.grad(layer(x).square().sum(), x)[0], before[0])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("conv2d", (7, CHANNELS, 4, 4), "does not hold clips of 5 frames"),
        ("temporal_conv", (1, CHANNELS, 4, 3, 3), "does not hold clips of 5 frames"),
        ("temporal_attn.to_q", (12, FRAMES, CHANNELS), "does not hold clips of 5 frames"),
        ("to_q", (1, FRAMES, 12, CHANNELS), "no clips are known"),
    ],
    ids=["frames missing", "other length", "no layer before it", "unknown layout"],
)
def test_an_input_without_whole_clips_is_refused(name, shape, message):
    layer = Layered().quantized()[name]
    with pytest.raises(ValueError, match=message), ComplexityProbe({name: layer}, FRAMES):
        layer(torch.randn(shape))


def test_notes_of_several_devices_are_joined_by_layer():
    first, second = {"a": [(1.0, 2.0)], "b": [(3.0, 4.0)]}, {"b": [(5.0, 6.0)]}
    assert merge([first, second]) == {"a": [(1.0, 2.0)], "b": [(3.0, 4.0), (5.0, 6.0)]}
    assert first == {"a": [(1.0, 2.0)], "b": [(3.0, 4.0)]}
