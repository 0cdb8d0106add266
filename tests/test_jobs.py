"""A job of a sweep is run once; another one is never mixed with it; stopped ones go on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from quantsr import jobs
from quantsr.errors import UserError

CONFIG = {"seed": 0, "method": {"rank": 8, "parts": ["denoiser"]}, "run_dir": "/old", "ckpt_path": None}


@pytest.fixture
def folder(tmp_path):
    """The folder of job 3 that has begun."""
    path = tmp_path / "3_qartsr_w4a4_tiny_image"
    (path / "checkpoints").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(CONFIG), path / "config.yaml")
    return path


@pytest.fixture
def hydra(monkeypatch, folder):
    """What Hydra says of the job."""
    source = [
        SimpleNamespace(provider="main", schema="file", path="/a/conf"),
        SimpleNamespace(provider="command-line", schema="file", path="/my conf"),
        SimpleNamespace(provider="schema", schema="structured", path=""),
    ]
    config = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(folder), config_sources=source),
        job=SimpleNamespace(config_name="train"),
        overrides=SimpleNamespace(task=["method=qartsr", "run_dir=/x", "seed=1"]),
        sweep=SimpleNamespace(dir=str(folder.parent)),
    )
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: config)
    monkeypatch.setenv(jobs.SCRIPT, "/a/train.py")
    return config


class TestAnotherJob:
    def test_the_same_configuration_is_the_same_job_wherever_it_writes(self, folder):
        jobs.refuse_another(OmegaConf.create(CONFIG | {"run_dir": "/new", "ckpt_path": "/last.ckpt"}), folder)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"seed": 1}, "seed=0, which is now 1"),
            ({"method": {"rank": 4, "parts": ["denoiser"]}}, "method.rank=8, which is now 4"),
            ({"extra": True}, "extra=None, which is now True"),
        ],
    )
    def test_another_value_is_refused(self, folder, change, text):
        with pytest.raises(UserError, match=text):
            jobs.refuse_another(OmegaConf.create(CONFIG | change), folder)

    def test_another_name_under_the_number_is_refused(self, folder):
        with pytest.raises(UserError, match="3_qartsr_w4a4_tiny_image holds another job 3"):
            jobs.refuse_another(OmegaConf.create(CONFIG), folder.parent / "3_minmax_w4a4_tiny_image")

    def test_other_numbers_are_others(self, folder):
        jobs.refuse_another(OmegaConf.create(CONFIG), folder.parent / "33_minmax_w4a4_tiny_image")


class TestCheckpoint:
    def save(self, folder, *names: str) -> None:
        for age, name in enumerate(reversed(names)):
            path = folder / "checkpoints" / name
            path.touch()
            os.utime(path, (1000 - age, 1000 - age))

    def test_none(self, folder):
        assert jobs.resumable(folder) is None

    @pytest.mark.parametrize("names", [("last.ckpt", "interrupted.ckpt"), ("interrupted.ckpt", "last.ckpt")])
    def test_the_newest(self, folder, names):
        self.save(folder, *names)
        assert jobs.resumable(folder).name == names[-1]

    @pytest.mark.parametrize("code", [130, -9, -12])
    def test_of_a_job_that_was_stopped_or_killed(self, folder, code):
        self.save(folder, "last.ckpt")
        (folder / "failed").write_text(f"exit code {code}: seed=0\n")
        assert jobs.resumable(folder).name == "last.ckpt"

    @pytest.mark.parametrize("code", [1, 2, 13])
    def test_not_of_one_that_failed_by_itself(self, folder, code):
        self.save(folder, "last.ckpt")
        (folder / "failed").write_text(f"exit code {code}: seed=0\n")
        assert jobs.resumable(folder) is None
        assert not (folder / "checkpoints").exists()


class TestCommand:
    def test_it_is_the_jobs_own_single_run_on_the_same_configuration_folders(self, hydra, folder):
        assert jobs.command(folder) == [
            sys.executable,
            "/a/train.py",
            "--config-name",
            "train",
            "--config-path",
            "/a/conf",
            "--config-dir",
            "/my conf",
            "method=qartsr",
            "seed=1",
            f"hydra.run.dir='{folder}'",
            "hydra.output_subdir=null",
        ]

    def test_it_goes_on_from_a_checkpoint(self, hydra, folder, capsys):
        (folder / "checkpoints" / "last.ckpt").touch()
        assert f"ckpt_path='{folder}/checkpoints/last.ckpt'" in jobs.command(folder)
        assert "resuming" in capsys.readouterr().out


class TestRun:
    """What comes of exit codes."""

    @pytest.fixture
    def run(self, hydra, monkeypatch):
        def run(code: int, objective: str | None = None) -> float | None:
            started = []
            monkeypatch.setattr(jobs, "start", lambda line: started.append(line) or code)
            run.started = started
            return jobs.run_job(OmegaConf.create(CONFIG | ({"objective": objective} if objective else {})))

        return run

    def test_a_finished_job_is_not_run_again(self, run, folder, capsys):
        (folder / "metrics.json").write_text("{}")
        run(0)
        assert run.started == []
        assert capsys.readouterr().out == f"finished {folder}: not run again\n"

    def test_a_failure_is_written_down_until_it_succeeds(self, run, folder):
        run(1)
        assert (folder / "failed").read_text() == "exit code 1: method=qartsr run_dir=/x seed=1\n"
        run(0)
        assert not (folder / "failed").exists()

    def test_a_stop_ends_the_sweep(self, run):
        with pytest.raises(KeyboardInterrupt):
            run(130)

    def test_a_stop_in_a_launchers_process_ends_that_job(self, run, monkeypatch, folder):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        assert run(130) is None
        assert (folder / "failed").is_file()

    def test_objective(self, run, folder):
        (folder / "config.yaml").unlink()
        (folder / "metrics.json").write_text(json.dumps({"student": {"psnr_y": 23.5}, "fidelity_psnr": 31}))
        assert run(0, "fidelity_psnr") == 31.0 and run(0, "student.psnr_y") == 23.5
        with pytest.raises(UserError, match=r"objective=lpips is not in .*choose one of student.psnr_y, fidelity_psnr"):
            run(0, "lpips")


def test_a_process_is_asked_to_stop_once(hydra, tmp_path):
    """Two signals at the same time, from a terminal and from submitit, are one."""
    program = (
        "import signal, sys, time; seen = []; signal.signal(signal.SIGINT, lambda *_: seen.append(1)); "
        f"open({str(tmp_path / 'ready')!r}, 'w'); end = time.time() + 20\n"
        "while not seen and time.time() < end: time.sleep(0.01)\n"
        "time.sleep(0.5); sys.exit(40 + len(seen))"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        for number in (signal.SIGINT, signal.SIGUSR2):
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    assert jobs.start([sys.executable, "-c", program]) == 41
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_jobs_belong_to_the_sweep_in_wandb(hydra, tmp_path):
    program = f"import os; open({str(tmp_path / 'group')!r}, 'w').write(os.environ['WANDB_RUN_GROUP'])"
    assert jobs.start([sys.executable, "-c", program]) == 0
    assert (tmp_path / "group").read_text() == tmp_path.name


def test_a_launchers_process_is_known_by_its_environment():
    code = "from quantsr import jobs; print(jobs.in_launcher())"
    answers = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.strip()
        for environment in ({**os.environ}, {**os.environ, "SUBMITIT_EXECUTOR": "local"})
    ]
    assert answers == ["False", "True"]
