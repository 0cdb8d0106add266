"""The teacher's time beside the student's, on the runtime that is ready."""

import pytest
from rich.console import Console

from quantsr import speed
from quantsr.deploy import openvino
from quantsr.errors import UserError
from quantsr.teachers.files import save_teacher
from tests.conftest import micro_teacher, micro_video_teacher
from tests.deploy.conftest import ABOUT, minmax, video_run  # noqa: F401
from tests.deploy.test_artefact import saved


@pytest.fixture
def run(tmp_path):
    teacher = micro_teacher()
    save_teacher(teacher, tmp_path / "teacher.safetensors")
    about = {**ABOUT, "teacher": str(tmp_path / "teacher.safetensors")}
    saved(*minmax(teacher), teacher, tmp_path / "artefact", about)
    return tmp_path / "artefact"


def printed(table) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_simulation_is_called_so(run):
    text = printed(speed.compare(run, 32, 1, "auto", "cpu"))
    assert "one output of 32x32 on cpu" in text and "torch, simulated" in text


def test_an_exported_student_runs_as_integers(run):
    openvino.export(run)
    text = printed(speed.compare(run, 32, 1, "auto", "cpu"))
    assert "openvino, integers" in text and "simulated" not in text


def test_integers_that_this_processor_lacks_are_not_claimed(run, monkeypatch):
    monkeypatch.setattr("quantsr.deploy.openvino.overflow.overflows", lambda: True)
    openvino.export(run)
    assert "openvino, integers below 8 bits" in printed(speed.compare(run, 32, 1, "auto", "cpu"))


def test_of_clips_a_segment_is_timed(video_run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(speed, "teacher_of", lambda config: micro_video_teacher())
    text = printed(speed.compare(video_run / "artefact", 32, 1, "auto", "cpu"))
    assert "3 frames of 32x32 on cpu" in text and "torch, simulated" in text


def test_the_size_that_is_told_is_the_size_that_is_timed(run):
    assert "one output of 32x32 on cpu" in printed(speed.compare(run, 33, 1, "auto", "cpu"))


def test_numbers_that_cannot_be(run):
    with pytest.raises(UserError, match="--rounds takes a number of timed runs, 1 or more, not 0"):
        speed.compare(run, 32, 0, "auto", "cpu")
    with pytest.raises(UserError, match="--size takes 4 pixels or more, which one pixel becomes, not 3"):
        speed.compare(run, 3, 1, "auto", "cpu")


def test_a_folder_without_a_student(tmp_path):
    with pytest.raises(UserError, match="no artefact in"):
        speed.compare(tmp_path, 32, 1, "auto", "cpu")


def test_help_is_the_command_that_can_be_typed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed.py", "--help"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "usage: python -m quantsr.speed " in capsys.readouterr().out
