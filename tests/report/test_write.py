"""``python -m quantsr.report``: files, folders, bad input in one sentence."""

import pytest

from quantsr.report.__main__ import main

FILES = ["report.html", "table.csv", "table.md", "table.tex"]


def test_into_the_sweeps_own_folder(make_run, tmp_path, capsys):
    make_run()
    assert main([str(tmp_path / "sweep")]) == 0
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_file()) == FILES
    out = capsys.readouterr().out
    assert "23.39" in out and f"page     {tmp_path / 'sweep' / 'report.html'}" in out


def test_again_over_the_same_folder(make_run, tmp_path):
    make_run()
    for _ in range(2):
        assert main([str(tmp_path / "sweep")]) == 0
    assert (tmp_path / "sweep" / "table.csv").read_text().count("minmax") == 1


def test_several_folders(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(make_run("a")), str(make_run("b"))]) == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES


def test_a_folder_of_choice(make_run, tmp_path):
    assert main([str(make_run()), "--out", str(tmp_path / "x" / "y")]) == 0
    assert (tmp_path / "x" / "y" / "report.html").is_file()


@pytest.mark.parametrize(
    "prepare, says",
    [
        (lambda folder: None, "no folder at"),
        (lambda folder: folder.mkdir(), "no runs in"),
        (lambda folder: (folder / "run" / "config.yaml").parent.mkdir(parents=True), "no runs in"),
    ],
    ids=["no folder", "empty", "no run in it"],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, prepare, says):
    prepare(tmp_path / "runs")
    assert main([str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1


def test_only_runs_without_figures(make_run, tmp_path, capsys):
    run = make_run(metrics=None)
    assert main([str(run)]) == 2
    assert "no run has figures to compare: 0_minmax" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "RUN_OR_SWEEP" in capsys.readouterr().out
