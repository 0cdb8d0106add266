"""What is shown of ranks."""

import csv
from collections.abc import Callable

import pytest
from PIL import Image

from quantsr.methods.quantvsr.allocation import Allocation, allocate
from quantsr.methods.quantvsr.report import draw, print_allocation, write_csv
from tests.methods.quantvsr.samples import layers


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
