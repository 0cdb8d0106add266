"""Sweeps are gone on with, spread by launchers, searched by sweepers."""

import signal
import socket
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT
from tests.end_to_end.conftest import environment

pytestmark = pytest.mark.slow
MINMAX = "0_minmax_w4a4_tiny_image"


def assert_finished(sweep, *jobs: str) -> None:
    assert [(sweep / job / "metrics.json").is_file() for job in jobs] == [True] * len(jobs)


def test_the_same_command_runs_only_what_is_not_finished(run_alone, micro, tmp_path):
    """A job failed for want of a folder, which is there the second time."""
    sweep, later = tmp_path / "sweep", tmp_path / "later"
    source = next(option.split("=")[1] for option in micro if option.startswith("data.root="))
    command = ["train.py", "-m", *micro, f"data.root={source},{later}", "method=minmax", f"hydra.sweep.dir={sweep}"]
    first = run_alone(*command)
    jobs = [MINMAX, "1_minmax_w4a4_tiny_image"]
    assert first.code == 2 and f"1 of 2 jobs failed: {jobs[1]}" in first.err
    assert (sweep / jobs[1] / "failed").read_text().startswith("exit code 2: ")
    before = (sweep / jobs[0] / "metrics.json").stat().st_mtime_ns

    refused = run_alone(*command, "seed=3")
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert refused.err.startswith(f"error: {sweep} holds the sweep ")

    later.symlink_to(source)
    again = run_alone(*command)
    assert again.code == 0, again.err
    assert again.out.count("not run again") == 1 and f"finished {sweep / jobs[0]}: not run again" in again.out
    assert (sweep / jobs[0] / "metrics.json").stat().st_mtime_ns == before
    assert_finished(sweep, *jobs)
    assert not (sweep / jobs[1] / "failed").exists()


def test_ctrl_c_stops_the_sweep_and_the_same_command_goes_on(start, run_alone, micro, tmp_path):
    sweep = tmp_path / "sweep"
    steps = ["method=passionsr", "method.steps=6", "method.parts=[decoder]", "checkpoint_every=3"]
    command = ["train.py", "-m", *micro, *steps, "seed=1,2", f"hydra.sweep.dir={sweep}"]
    process = start(*command)
    for line in process.stdout:
        if " decoder.transforms, loss" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == f"stopped; the same command with hydra.sweep.dir={sweep} goes on"
    assert [path.name[0] for path in sorted(sweep.iterdir()) if path.is_dir()] == ["0"]
    saved = sweep / "0_passionsr_w4a4_tiny_image" / "checkpoints" / "interrupted.ckpt"
    assert saved.is_file()
    again = run_alone(*command)
    assert again.code == 0, again.err
    assert again.out.count("resuming") == 1 and f"resuming {saved}" in again.out
    assert_finished(sweep, "0_passionsr_w4a4_tiny_image", "1_passionsr_w4a4_tiny_image")
    overrides = OmegaConf.load(saved.parents[1] / ".hydra" / "overrides.yaml")
    assert not [override for override in overrides if override.startswith("ckpt_path")]


def test_jobs_use_the_configuration_folder_of_the_sweep(run_alone, micro, tmp_path):
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "mine.yaml").write_text("_target_: quantsr.quant.spec.Bits\nweight: 5\nact: 7\n")
    config = ["--config-dir", str(tmp_path), "--config-name", "train", "-m"]
    sweep = tmp_path / "sweep"
    result = run_alone("train.py", *config, *micro, "method=minmax", "bits=mine", f"hydra.sweep.dir={sweep}")
    assert result.code == 0, result.err
    cfg = OmegaConf.load(sweep / "0_minmax_w5a7_tiny_image" / "config.yaml")
    assert (cfg.bits.weight, cfg.bits.act) == (5, 7)


def test_submitit_runs_the_same_sweep_side_by_side(micro, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = tmp_path / "sweep"
    options = [*micro, "method=minmax", "bits.weight=9,8", "hydra/launcher=submitit_local"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *options, f"hydra.sweep.dir={sweep}"]
    # By the interpreter itself: submitit knows its processes by their numbers.
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    jobs = ["0_minmax_w9a4_tiny_image", "1_minmax_w8a4_tiny_image"]
    assert_finished(sweep, jobs[1])
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: 1 of 2 jobs failed: {jobs[0]}")
    assert "Traceback" not in result.stderr and "ConfigStore" not in result.stderr


def test_a_search_is_led_by_the_objective(run_alone, micro, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweep = tmp_path / "sweep"
    options = ["hparams_search=optuna", "hydra.sweeper.n_trials=2", "method.parts=[encoder]"]
    options += ["method.module_steps=1", "method.extended_steps=1"]
    result = run_alone("train.py", "-m", *micro, *options, f"hydra.sweep.dir={sweep}")
    assert result.code == 0, result.err
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    figures = [OmegaConf.load(path).fidelity_psnr for path in sorted(sweep.glob("*/metrics.json"))]
    assert len(figures) == 2 and best.best_value == max(figures)
    assert set(best.best_params) == {"method.weight_lr", "method.transform_lr", "method.bounds_lr"}


@pytest.mark.parametrize("nodes", [1, 2], ids=["one node", "two nodes"])
def test_tasks_of_slurm_are_the_processes_of_one_job(python, micro, tmp_path, nodes):
    """Two tasks as srun starts them, by their environment: they meet in one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shape = [f"trainer.num_nodes={nodes}", f"trainer.devices={2 // nodes}"]
    line = [python, str(ROOT / "train.py"), *micro, "method=minmax", *shape]
    line += [f"hydra.run.dir={tmp_path / MINMAX}"]
    slurm = {"JOB_ID": "4711", "JOB_NAME": "quantsr", "NTASKS": "2", "NTASKS_PER_NODE": str(2 // nodes)}
    slurm |= {"NNODES": str(nodes), "NODELIST": "127.0.0.1"}
    tasks = []
    for rank in range(2):
        node, local = divmod(rank, 2 // nodes)
        place = {"PROCID": str(rank), "LOCALID": str(local), "NODEID": str(node)}
        variables = {f"SLURM_{key}": value for key, value in (slurm | place).items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        tasks.append(
            subprocess.Popen(
                line, env=environment() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    ends = [task.communicate(timeout=600) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], ends
    assert_finished(tmp_path, MINMAX)
    assert [out.count("metrics  ") for out, _ in ends] == [1, 0]
