"""What is measured follows from what was asked for, the data and the weights that are there."""

import pytest
import torch

from quantsr.errors import UserError
from quantsr.metrics.choice import NO_REFERENCE, choose, lower_is_better, print_choice
from quantsr.metrics.weights import URLS, missing
from tests.metrics.test_perceptual import write_niqe

CLIP, IMAGE = (4, 3, 96, 128), (3, 96, 128)


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    """A folder with weights of NIQE alone; torch.hub's is empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "weights").mkdir()
    write_niqe(tmp_path / "weights")
    return tmp_path / "weights"


def test_nothing_is_asked_for_and_nothing_is_said(capsys):
    metrics = choose(shape=IMAGE)
    print_choice(metrics)
    assert metrics.names() == [] and capsys.readouterr().out == ""


def test_what_is_not_there_is_absent_with_the_reason(weights):
    metrics = choose(["lpips", "niqe", "fid"], weights_dir=weights, shape=IMAGE, count=3)
    assert list(metrics.images) == ["niqe"] and metrics.fid is None
    assert metrics.absent == {name: missing(name, weights) for name in ("lpips", "fid")}


def test_the_table_says_what_is_missing_and_which_way_is_better(weights, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    print_choice(choose(["lpips", "niqe", "musiq"], weights_dir=weights, shape=IMAGE))
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert rows["niqe"].split()[3:6] == ["lower", "│", "yes"] and rows["musiq"].split()[3:6] == ["higher", "│", "no"]
    assert "LPIPS_v0.1_alex-df73285e.pth" in rows["lpips"] and str(weights) in rows["lpips"]


def test_what_is_required_is_measured_and_an_error_if_it_cannot_be(weights):
    assert list(choose(require=["niqe"], weights_dir=weights).images) == ["niqe"]
    with pytest.raises(UserError) as error:
        choose(["niqe"], ["dists"], weights, IMAGE)
    assert str(error.value) == f"metrics.require: dists cannot be measured: {missing('dists', weights)}"


@pytest.mark.parametrize("key", ["names", "require"])
def test_an_unknown_name_is_refused_with_the_known_ones(key):
    with pytest.raises(UserError, match=f"metrics.{key} knows {', '.join(URLS)}, not brisk"):
        choose(**{key: ["brisk"]})


def test_clips_are_always_asked_for_dover_and_images_never():
    assert choose(shape=CLIP).absent == {"dover": missing("dover")}
    assert choose(["dover"], shape=IMAGE).absent == {"dover": "it scores clips, and the data is of images"}


@pytest.mark.parametrize(
    ("name", "shape", "count", "reason"),
    [
        ("niqe", (3, 95, 200), 9, "it needs images of 96 pixels a side or more, and the data has 200 x 95"),
        ("fid", IMAGE, 1, "it compares sets of two images or more, and the data has one"),
        ("fid", (1, *IMAGE), 1, "it compares sets of two images or more, and the data has one"),
    ],
)
def test_what_does_not_suit_the_data_is_absent(weights, name, shape, count, reason):
    assert choose([name], weights_dir=weights, shape=shape, count=count).absent[name] == reason


def test_without_ground_truth_what_compares_with_it_is_absent(weights):
    metrics = choose(["lpips", "dists", "niqe", "fid"], weights_dir=weights, shape=CLIP, count=3, reference=False)
    assert list(metrics.images) == ["niqe"] and metrics.absent.pop("dover") == missing("dover", weights)
    assert metrics.absent == dict.fromkeys(("lpips", "dists", "fid"), NO_REFERENCE)
    with pytest.raises(UserError, match=f"metrics.require: lpips cannot be measured: {NO_REFERENCE}"):
        choose(require=["lpips"], shape=CLIP, reference=False)


def test_frames_make_a_set():
    assert "weights" not in choose(["fid"], shape=CLIP, count=1).absent["fid"]
    assert choose(["fid"], shape=CLIP, count=1).absent["fid"] == missing("fid")


def test_which_way_is_better():
    better = {"lpips": True, "dists": True, "niqe": True, "fid": True}
    assert {name: lower_is_better(name) for name in URLS} == {name: better.get(name, False) for name in URLS}
