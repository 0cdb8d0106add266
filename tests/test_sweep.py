"""A sweep's table has a row a job that says what sets the job apart."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from quantsr.sweep import HEADINGS, Job, print_jobs, read_jobs, write_jobs

METRICS = {
    "teacher": {"psnr_y": 23.954, "ssim": 0.58461},
    "student": {"psnr_y": 23.391, "ssim": 0.54594},
    "fidelity_psnr": 31.702,
    "bytes": {"artefact": 3_010_000, "fp32": 18_450_000},
}
CELLS = ["23.39", "0.5459", "31.70", "23.95", "3.01"]


@pytest.fixture
def sweep(tmp_path):
    """A function that makes a sweep's folder from the overrides of its jobs, and reads it."""

    def sweep(*jobs: list[str], failed: tuple[int, ...] = (), metrics: dict = METRICS) -> list[Job]:
        for number, overrides in enumerate(jobs):
            folder = tmp_path / f"{number}_name"
            (folder / ".hydra").mkdir(parents=True)
            (folder / ".hydra" / "overrides.yaml").write_text(yaml.dump(overrides))
            if number in failed:
                (folder / "failed").write_text("")
            else:
                (folder / "metrics.json").write_text(json.dumps(metrics))
        return read_jobs(tmp_path)

    return sweep


def labels(jobs: list[Job]) -> list[str]:
    return [job.label for job in jobs]


def test_labels_hold_what_differs(sweep):
    jobs = sweep(
        ["method=qartsr", "logger=csv", "method.rank=0", "seed=1"],
        ["method=qartsr", "logger=csv", "method.rank=8", "seed=1"],
        ["method=qartsr", "logger=csv", "method.rank=8", "seed=2"],
    )
    assert labels(jobs) == ["method.rank=0 seed=1", "method.rank=8 seed=1", "method.rank=8 seed=2"]


def test_methods_and_bits_are_part_of_it(sweep):
    assert labels(sweep(["method=minmax", "bits=w4a4"], ["method=passionsr", "bits=w8a8"])) == [
        "method=minmax bits=w4a4",
        "method=passionsr bits=w8a8",
    ]


def test_values_may_hold_anything(sweep):
    given = ["method.parts=[encoder,denoiser]", "teacher.weights='/a=b, c'"]
    assert labels(sweep([given[0]], [given[1]])) == given


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_experiments_and_added_keys(sweep, plus):
    assert labels(sweep([f"{plus}experiment=a"], [f"{plus}experiment=b"])) == ["experiment=a", "experiment=b"]


def test_a_job_that_lacks_a_key_of_the_others(sweep):
    assert labels(sweep(["seed=1"], ["seed=1", "bits=w8a8"])) == ["0_name", "bits=w8a8"]


def test_jobs_that_do_not_differ_go_by_their_folders(sweep):
    assert labels(sweep(["seed=1"])) == ["0_name"]


def test_without_hydras_own_files(sweep, tmp_path):
    sweep(["seed=1"])
    (tmp_path / "0_name" / ".hydra" / "overrides.yaml").unlink()
    assert labels(read_jobs(tmp_path)) == ["0_name"]


def test_jobs_come_in_the_order_of_their_numbers(sweep):
    jobs = sweep(*([f"seed={number}"] for number in range(11)))
    assert [job.number for job in jobs] == [str(number) for number in range(11)]


def test_failed_jobs_count_for_what_differs(sweep):
    jobs = sweep(["seed=1"], ["seed=2"], failed=(1,))
    assert labels(jobs) == ["seed=1", "seed=2"]
    assert [job.metrics is None for job in jobs] == [False, True]


def test_figures(sweep):
    assert sweep(["seed=1"])[0].cells() == CELLS


def test_figures_of_a_trained_teacher(sweep):
    (job,) = sweep(["seed=1"], metrics={"teacher": METRICS["teacher"]})
    assert job.cells() == ["23.95", "0.5846", "", "23.95", ""]


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_terminal_shows_every_figure_and_every_override(sweep, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    options = ["method.phi=true", "method.rank=0", "method.extended_steps=200", "method.parts=[encoder,denoiser]"]
    print_jobs(sweep(options, [option.partition("=")[0] + "=1" for option in options]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    if columns >= 100:
        assert all(option in out for option in options)
    (row,) = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│ 0")]
    assert [cell.strip() for cell in row[2:]] == CELLS


class TestFiles:
    def test_csv_has_a_column_a_key(self, sweep, tmp_path):
        file, _ = write_jobs(sweep(["bits=w4a4", "seed=1"], ["bits=w4a4", "seed=2"]), tmp_path)
        assert file == tmp_path / "sweep.csv"
        rows = list(csv.reader(file.open()))
        assert rows[0] == ["job", "seed", *HEADINGS]
        assert rows[1:] == [["0_name", "1", *CELLS], ["1_name", "2", *CELLS]]

    def test_markdown_is_the_table(self, sweep, tmp_path):
        _, file = write_jobs(sweep(["seed=1"], ["seed=2"]), tmp_path)
        assert file == Path(tmp_path, "sweep.md")
        lines = file.read_text().splitlines()
        assert lines[0] == f"| # | job | {' | '.join(HEADINGS)} |"
        assert lines[2:] == [f"| {n} | seed={n + 1} | {' | '.join(CELLS)} |" for n in range(2)]
        assert len({line.count("|") for line in lines}) == 1
