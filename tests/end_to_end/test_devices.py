"""Two devices give what one gives at the same global batch, up to float error; sweeps on two run each job once."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
TWO = "trainer.devices=2"
# Where a gradient is nearly zero, float error decides the sign of Adam's first steps.
TOLERANCE = 0.05
# A last-bit difference that moves an activation across a rounding border becomes a whole step of the quantizer: at 8
# bits a batch of two and two single images differ by a percent in the loss. At 16 bits a step is too small to matter.
BITS = ["bits.weight=4", "bits.act=16"]


def packed(folder: Path):
    return load_file(folder / "artefact" / "student.safetensors")


def ranks_of(folder: Path) -> list[str]:
    return [row["rank"] for row in csv.DictReader((folder / "ranks.csv").open())]


@pytest.mark.parametrize(
    "method",
    [
        ["method=minmax"],
        ["method=qartsr", "method.module_steps=1", "method.extended_steps=2", "method.parts=[encoder]", "offload=true"],
    ],
    ids=["minmax", "qartsr with offload"],
)
def test_two_devices_are_as_one(run, run_alone, micro, tmp_path, method):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("train.py", *micro, *method, *BITS, f"hydra.run.dir={one}").code == 0
    result = run_alone("train.py", *micro, *method, *BITS, TWO, f"hydra.run.dir={two}")
    assert result.code == 0, result.err
    assert result.out.count("metrics  ") == 1 and "Warning" not in result.err
    ours, theirs = packed(two), packed(one)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.endswith(".codes"):  # Scales that were trained move codes by a step here and there.
            assert (ours[name] != tensor).float().mean() < (0.02 if method == ["method=minmax"] else 0.5), name
        elif not name.endswith("zero_point"):  # They may round to a neighbour.
            difference = (ours[name].float() - tensor.float()).norm()
            assert difference <= TOLERANCE * tensor.float().norm() + 1e-6, name
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for model in ("teacher", "student"):
        assert figures[1][model]["psnr_y"] == pytest.approx(figures[0][model]["psnr_y"], abs=0.1)


def test_quantvsr_on_two_devices_is_as_on_one(run, run_alone, video_micro, tmp_path):
    """Its branches change their shapes in the middle of the run: gradients are joined all the same."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*video_micro, *BITS, "data.batch_size=2", "method.refinement_steps=3"]
    assert run("train.py", *options, f"hydra.run.dir={one}").code == 0
    result = run_alone("train.py", *options, TWO, f"hydra.run.dir={two}")
    assert result.code == 0, result.err
    assert result.out.count("metrics  ") == 1 and "Warning" not in result.err
    ranks = ranks_of(one)
    assert ranks_of(two) == ranks and len(set(ranks)) > 1
    ours, theirs = packed(two), packed(one)
    assert ours.keys() == theirs.keys()
    moved = []
    for name, tensor in theirs.items():
        difference = ours[name].float() - tensor.float()
        if name.endswith(".bias"):
            moved.append(difference.abs() > 5e-4)  # Half a step of AdamW.
        elif not name.endswith((".codes", "zero_point")):
            assert difference.norm() <= 2 * TOLERANCE * tensor.float().norm() + 1e-6, name
    # A run on other clips comes to more.
    assert torch.cat(moved).float().mean() < 0.15
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert figures[1]["student"]["psnr_y"] == pytest.approx(figures[0]["student"]["psnr_y"], abs=0.1)


def test_a_sweep_on_two_devices_runs_each_job_once(run_alone, micro, tmp_path):
    sweep = tmp_path / "sweep"
    result = run_alone("train.py", "-m", *micro, "method=minmax", "bits=w4a4,w8a8", TWO, f"hydra.sweep.dir={sweep}")
    assert result.code == 0, result.err
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0_minmax_w4a4_tiny_image", "1_minmax_w8a8_tiny_image"]
    assert result.out.count("metrics  ") == 2
    assert result.out.count(f"sweep    {sweep}") == 1
    assert [json.loads((sweep / job / "artefact" / "config.json").read_text())["bits"] for job in jobs] == [
        "w4a4",
        "w8a8",
    ]
