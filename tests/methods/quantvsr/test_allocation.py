"""Which rank follows from complexities."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from quantsr.errors import UserError
from quantsr.methods.quantvsr.allocation import allocate
from quantsr.methods.quantvsr.complexity import Samples
from tests.methods.quantvsr.samples import layers


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
