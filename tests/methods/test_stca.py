"""Complexity-aware ranks: what is measured at a layer, which rank follows from it, and what is reported."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from quantsr.errors import UserError
from quantsr.methods.quantvsr.allocation import Allocation, allocate
from quantsr.methods.quantvsr.complexity import (
    ComplexityProbe,
    Samples,
    merge,
    spatial_complexity,
    temporal_complexity,
)
from quantsr.methods.quantvsr.report import draw, print_allocation, write_csv
from quantsr.quant.layer import QuantizedLayer
from tests.quant.layers import recipe

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "quantvsr_stca.safetensors"
CHANNELS, FRAMES = 6, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    if not REFERENCE.is_file():
        pytest.skip("reference vectors (../shared/reference) are not here")
    with safe_open(REFERENCE, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# The two complexities.


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


# The allocation.


def layers(count: int = 24, samples: int = 60, still: bool = False) -> Samples:
    """Layers of rising complexity."""
    rng = np.random.default_rng(0)
    levels = np.linspace(-2, 1, count)[:, None] + rng.normal(0, 0.15, (count, samples))
    motion = 0 if still else 10 ** (2 * levels)
    pairs = np.stack([10**levels, motion + 0 * levels], -1)
    return {f"layer.{i}": [(*pair,) for pair in row] for i, row in enumerate(pairs.tolist())}


def by_the_authors_rule(samples: Samples) -> dict[str, int]:
    """QuantVSR's loop over samples, with its figures."""
    every = torch.tensor([pair for pairs in samples.values() for pair in pairs], dtype=torch.float64)
    (l_s, l_t), (u_s, u_t) = torch.quantile(every, torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0).tolist()
    ranks = {}
    for name, pairs in samples.items():
        rank = 16
        for spatial, temporal in pairs:
            if spatial <= l_s and temporal <= l_t:
                rank -= 1
            elif spatial >= u_s and temporal >= u_t:
                rank += 1
        ranks[name] = (min(max(rank, 16), 64) + 4) // 8 * 8
    return ranks


def test_ranks_agree_with_the_authors(reference):
    samples = {
        str(i): list(zip(reference[f"spatial.{i}"].tolist(), reference[f"temporal.{i}"].tolist(), strict=True))
        for i in range(6)
    }
    assert list(allocate(samples).ranks.values()) == reference["ranks"].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_defaults_are_the_authors_rule(seed):
    rng = np.random.default_rng(seed)
    scales = 10 ** (rng.normal(0, 0.4, (20, 1, 1)) + rng.normal(0, 0.2, (20, 1, 2)))
    draws = np.round(scales * 10 ** rng.normal(0, 0.3, (20, 80, 2)), 1)  # Rounded: many ties.
    samples = {str(i): [(*pair,) for pair in row] for i, row in enumerate(draws.tolist())}
    allocation = allocate(samples)
    assert allocation.ranks == by_the_authors_rule(samples)
    assert len(set(allocation.ranks.values())) > 3


def test_ranks_rise_with_complexity_from_the_smallest_to_the_largest():
    ranks = list(allocate(layers()).ranks.values())
    assert ranks == sorted(ranks) and ranks[0] == 16 and ranks[-1] == 64
    assert all(rank % 8 == 0 for rank in ranks)


def test_one_complexity_alone_moves_no_rank():
    """The layers with the most detail move the least."""
    samples = layers()
    opposite = {
        name: [(spatial, temporal) for (spatial, _), (_, temporal) in zip(pairs, others, strict=True)]
        for (name, pairs), others in zip(samples.items(), reversed(samples.values()), strict=True)
    }
    assert set(allocate(opposite).ranks.values()) == {16}


def test_neither_units_nor_the_order_of_samples_matter():
    samples = layers()
    other = {name: [(3 * s, 9 * t) for s, t in reversed(pairs)] for name, pairs in samples.items()}
    assert allocate(other).ranks == allocate(samples).ranks


def test_for_images_the_spatial_complexity_decides_alone():
    still = allocate(layers(still=True))
    assert not still.moving and still.quantiles[2:] == (0, 0)
    # In these layers motion follows detail, so that it changes nothing.
    assert still.ranks == allocate(layers()).ranks
    assert len(set(still.ranks.values())) > 2


def test_equal_layers_stay_at_the_smallest_rank():
    samples = {name: [(1.0, 0.0)] * 30 for name in "abc"}
    assert set(allocate(samples).ranks.values()) == {16}


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"smallest": 4, "largest": 16, "multiple": 4}, {4, 8, 12, 16}),
        ({"smallest": 4, "largest": 16}, {8, 16}),
        ({"smallest": 3, "largest": 3}, {3}),
        ({"smallest": 5, "largest": 18, "multiple": 4}, {5, 8, 12, 16, 18}),
        ({"smallest": 1, "largest": 6, "multiple": 1}, set(range(1, 7))),
        ({"percentile": 0.4}, {16, 24, 32, 40, 48, 56, 64}),
    ],
    ids=str,
)
def test_other_figures_keep_to_their_bounds_and_multiples(options, possible):
    ranks = set(allocate(layers(), **options).ranks.values())
    assert ranks <= possible
    assert {max(ranks), min(ranks)} <= {max(possible), min(possible)}


def test_the_table_knows_the_rank_that_a_weight_can_have():
    samples = layers()
    limits = dict.fromkeys(samples, 64) | {"layer.23": 20, "layer.0": 3, "unasked": 1}
    allocation = allocate(samples, limits=limits)
    assert (allocation.ranks["layer.23"], allocation.ranks["layer.0"]) == (64, 16)
    assert (allocation.real_ranks["layer.23"], allocation.real_ranks["layer.0"]) == (20, 3)
    free = allocate(samples)
    assert free.real_ranks == free.ranks
    assert free.average_rank - allocation.average_rank == pytest.approx((44 + 13) / len(samples))


def test_means_and_quantiles_are_those_of_the_samples():
    samples = layers()
    allocation = allocate(samples)
    every = np.array(list(samples.values()))
    assert list(allocation.spatial.values()) == pytest.approx(every[..., 0].mean(1))
    assert list(allocation.temporal.values()) == pytest.approx(every[..., 1].mean(1))
    q = allocation.quantiles
    for values, lower, upper in (
        (every[..., 0], q.spatial_lower, q.spatial_upper),
        (every[..., 1], q.temporal_lower, q.temporal_upper),
    ):
        assert (lower, upper) == pytest.approx((np.quantile(values, 0.25), np.quantile(values, 0.75)))


def test_an_allocation_is_ready_for_json():
    allocation = allocate(layers(still=True), limits=dict.fromkeys(layers(), 12))
    assert json.loads(json.dumps(asdict(allocation)))["ranks"] == allocation.ranks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 0.5}, "percentile"),
        ({"percentile": 0}, "percentile"),
        ({"smallest": 0}, "smallest of 1"),
        ({"smallest": 65}, "not from 65 to 64"),
        ({"multiple": 0}, "multiple of 1"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        allocate(layers(), **options)


def test_inputs_that_overflowed_are_refused():
    with pytest.raises(UserError, match=r"2 layers .* \(layer\.3 is the first\)"):
        allocate(layers() | {"layer.3": [(float("inf"), 1.0)], "layer.4": [(1.0, float("nan"))]})


@pytest.mark.parametrize("samples", [{}, {"a": []}], ids=["no layer", "no sample"])
def test_nothing_follows_from_nothing(samples):
    with pytest.raises(ValueError, match="samples"):
        allocate(samples)


# The report.


def test_the_file_holds_every_layer(tmp_path):
    allocation = allocate(layers(), limits=dict.fromkeys(layers(), 40))
    write_csv(allocation, tmp_path / "ranks.csv")
    rows = {row["layer"]: row for row in csv.DictReader((tmp_path / "ranks.csv").read_text().splitlines())}
    assert {name: int(row["asked_rank"]) for name, row in rows.items()} == allocation.ranks
    assert {name: int(row["rank"]) for name, row in rows.items()} == allocation.real_ranks
    assert {name: float(row["spatial"]) for name, row in rows.items()} == allocation.spatial
    assert {name: float(row["temporal"]) for name, row in rows.items()} == allocation.temporal


def test_the_table_shows_both_ends_and_the_summary_all(capsys):
    allocation = allocate(layers(), limits=dict.fromkeys(layers(), 40))
    print_allocation(allocation, "Ranks of the branches")
    out = capsys.readouterr().out
    shown = {name for name in allocation.ranks if f" {name} " in out}
    assert shown == {f"layer.{i}" for i in (*range(14, 24), *range(5))} and "9 more" in out
    assert out.index("layer.23") < out.index("layer.0")
    counts = {rank: list(allocation.real_ranks.values()).count(rank) for rank in (16, 40)}
    line = " ".join(out.split())
    assert f"average rank {allocation.average_rank:.4g} over 24 layers: rank 16 in {counts[16]}, " in line
    assert f"40 in {counts[40]} (" in line and "cut to the rank of their weight" in line


def test_a_short_table_leaves_nothing_out(capsys):
    allocation = allocate(layers(8))
    print_allocation(allocation, "Ranks of the branches")
    out = capsys.readouterr().out
    assert all(out.count(f" {name} ") == 1 for name in allocation.ranks) and "more" not in out and "cut" not in out


def with_zeros() -> Allocation:
    return allocate(layers() | {"prompt": [(0.5, 0.0)] * 60})


@pytest.mark.parametrize(
    "make",
    [
        lambda: allocate(layers()),
        with_zeros,
        lambda: allocate(layers(still=True)),
        lambda: allocate(layers(60, still=True), multiple=1),
        lambda: allocate({"a": [(1.0, 1.0)]}),
        lambda: allocate({"a": [(0.0, 0.0)]}),
    ],
    ids=["clips", "a layer without motion", "images", "many layers", "one layer", "one flat layer"],
)
def test_the_picture_is_drawn(make: Callable[[], Allocation], tmp_path):
    draw(make(), "Complexity of the inputs", tmp_path / "ranks.png")
    with Image.open(tmp_path / "ranks.png") as picture:
        assert picture.size == (1200, 900)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
