"""What has to be right before a sweep starts is checked before its first job."""

import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from quantsr import launch
from quantsr.errors import UserError
from tests.conftest import ROOT

# Hydra says of our files that stand in for a plugin's that it has the plugin's too.
pytestmark = pytest.mark.filterwarnings("ignore:.*is validated against ConfigStore schema:UserWarning")


def configuration(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


class TestPlugins:
    @pytest.mark.parametrize("override", ["hydra/launcher=submitit_local", "hydra/sweeper=optuna_tpe"])
    def test_a_missing_one_is_named(self, monkeypatch, override):
        monkeypatch.setattr(launch, "find_spec", lambda name: None if "." in name else name)
        group, choice = override.split("=")
        with pytest.raises(
            UserError, match=rf"{group}={choice} needs the package hydra-.*pip install 'quantsr\[sweeps\]'"
        ):
            launch.check_plugins(configuration(override))

    def test_without_any_plugin(self, monkeypatch):
        monkeypatch.setattr(launch, "find_spec", lambda name: None)
        launch.check_plugins(configuration())
        with pytest.raises(UserError, match="hydra-submitit-launcher"):
            launch.check_plugins(configuration("hydra/launcher=submitit_slurm"))

    def test_slurm_where_there_is_none(self, monkeypatch):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
        monkeypatch.setenv("PATH", "")
        with pytest.raises(UserError, match="there is no srun here"):
            launch.check_plugins(configuration("hydra/launcher=submitit_slurm"))


class TestFolder:
    @pytest.fixture
    def record(self, tmp_path):
        config = configuration("method=minmax")
        OmegaConf.save(config, tmp_path / "multirun.yaml")
        return tmp_path / "multirun.yaml"

    def test_a_new_one(self, tmp_path):
        launch.refuse_another(configuration(), tmp_path / "multirun.yaml")

    def test_the_same_command_line(self, record):
        launch.refuse_another(configuration("method=minmax"), record)

    def test_another_launcher_is_the_same_sweep(self, record):
        launch.refuse_another(configuration("method=minmax", "hydra.sweep.subdir=x"), record)

    @pytest.mark.parametrize("overrides", [["method=trq"], ["method=minmax", "seed=1"], []])
    def test_another_command_line(self, record, overrides):
        with pytest.raises(UserError, match=f"{record.parent} holds the sweep method=minmax: give the same"):
            launch.refuse_another(configuration(*overrides), record)

    def test_an_experiment_that_sweeps_over_other_values(self, record):
        config = configuration("method=minmax")
        with launch.read_write(config):
            config.hydra.sweeper.params = {"bits": "w4a4,w2a2"}
        with pytest.raises(UserError, match="holds the sweep"):
            launch.refuse_another(config, record)


class TestProcessor:
    @pytest.fixture(autouse=True)
    def cores(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that what the code sets is put back
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(os, "cpu_count", lambda: 8)

    @pytest.mark.parametrize(
        ("overrides", "at_once", "threads"), [([], 2, "4"), (["hydra.sweeper.max_batch_size=4"], 4, "2")]
    )
    def test_jobs_share_it(self, overrides, at_once, threads):
        config = configuration("hydra/launcher=submitit_local", *overrides)
        launch.share_processor(config)
        assert config.hydra.sweeper.max_batch_size == at_once
        assert os.environ["OMP_NUM_THREADS"] == threads

    def test_searches_say_themselves_how_many_run_at_once(self):
        search = ["hydra/sweeper=optuna_tpe", "hydra.sweeper.n_jobs=8"]
        launch.share_processor(configuration("hydra/launcher=submitit_local", *search))
        assert os.environ["OMP_NUM_THREADS"] == "1"

    def test_the_users_own_number_of_threads_stays(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        launch.share_processor(configuration("hydra/launcher=submitit_local"))
        assert os.environ["OMP_NUM_THREADS"] == "3"

    def test_one_job_after_the_other_has_all_of_it(self):
        launch.share_processor(configuration())
        assert "OMP_NUM_THREADS" not in os.environ


def test_slurm_has_one_task_a_device():
    config = configuration("hydra/launcher=submitit_slurm", "trainer.num_nodes=3", "trainer.devices=4")
    asked = config.hydra.launcher
    assert (asked.nodes, asked.tasks_per_node, asked.gpus_per_node) == (3, 4, 4)


class TestComparisons:
    @pytest.mark.parametrize(("kind", "data", "attention"), [("image", "photos", True), ("video", "motion", False)])
    @pytest.mark.parametrize("method", ["minmax", "qartsr", "quantvsr"])
    def test_all_methods_have_the_same_teacher_data_and_layers(self, method, kind, data, attention):
        """Also quantvsr, whose own file brings a teacher and data."""
        config = configuration(f"experiment=compare_{kind}", f"method={method}")
        choices = config.hydra.runtime.choices
        assert (choices.method, choices.teacher, choices.data) == (method, f"tiny_{kind}", data)
        assert (config.method.parts, config.method.attention) == (["denoiser"], attention)

    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_what_they_sweep_over(self, kind):
        params = configuration(f"experiment=compare_{kind}").hydra.sweeper.params
        assert params.bits == "w8a8,w6a6,w4a4,w2a2"
        assert params.method.split(",")[0] == "minmax" and len(set(params.method.split(","))) == 10


class TestOutputThatNobodyReads:
    def test_it_ends_without_a_traceback(self):
        command = [sys.executable, "train.py", "--help"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1

    def test_another_pipe_that_breaks_is_no_end(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["train.py", "method=minmax"])
        with pytest.raises(BrokenPipeError), launch.one_sentence():
            raise BrokenPipeError
