"""Every option of every config group composes, and builds what it names."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from quantsr.data.frames import FramesDataModule
from quantsr.data.layouts import DATA_SETS
from quantsr.methods.base import StagedModule
from quantsr.metrics.choice import choose
from quantsr.metrics.weights import URLS
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from tests.conftest import ROOT
from tests.data.folders import make

CONF = ROOT / "conf"
FOLDERS = ["data.root=/images", "data.lq=/lq", "data.gt=/gt"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def configuration(*overrides: str, name: str = "train") -> DictConfig:
    """What the command would run with, its run folder aside."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    cfg.run_dir = "/nowhere"
    del cfg["hydra"]
    return cfg


def resolved(cfg: DictConfig) -> dict:
    """All values; the name, which asks Hydra what was chosen, too."""
    return OmegaConf.to_container(cfg, resolve=True)


def test_every_folder_is_a_group_of_the_command_line():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups >= {"bits", "data", "experiment", "logger", "method", "metrics", "teacher", "trainer"}


@pytest.mark.parametrize("bits", options("bits"))
def test_bits(bits):
    built = instantiate(configuration(f"bits={bits}").bits)
    assert isinstance(built, Bits) and str(built) == bits


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(["bits.weight=3", "bits.act=5"], Bits(3, 5)), (["bits=w8a8", "bits.act=16"], Bits(8, 16))],
)
def test_any_pair_of_bits(overrides, expected):
    assert instantiate(configuration(*overrides).bits) == expected


def test_a_run_is_named_after_its_actual_bits():
    cfg = resolved(configuration("bits=w8a8", "bits.weight=3", "bits.act=5"))
    assert cfg["name"] == "qartsr_w3a5_tiny_image" and "w3a5" in cfg["logger"]["wandb"]["tags"]


@pytest.mark.parametrize("method", options("method"))
def test_method(method, teacher):
    cfg = configuration(f"method={method}", "bits=w3a3")
    built = instantiate(cfg.method, teacher=teacher)
    assert isinstance(built, StagedModule) and built.steps > 0
    packaged = "tiny_video" if method == "quantvsr" else "tiny_image"
    assert resolved(cfg)["name"] == f"{method}_w3a3_{packaged}"


def test_a_teacher_that_is_named_wins_over_the_methods_own():
    cfg = configuration("method=quantvsr", "teacher=tiny_image", "data=photos")
    assert resolved(cfg)["name"] == "quantvsr_w4a4_tiny_image"


FULL_SIZE = ["mgldvsr", "mgldvsr_random", "osediff", "osediff_random"]


@pytest.mark.parametrize("teacher", sorted(set(options("teacher")) - set(FULL_SIZE)))
def test_teacher(teacher):
    built = instantiate(configuration(f"teacher={teacher}").teacher)
    assert isinstance(built, Teacher) and built.scale == 4


@pytest.mark.parametrize("teacher", FULL_SIZE)
def test_teacher_of_full_size_is_built_without_its_files(teacher):
    """The loader's module builds it from the same arguments."""
    node = configuration(f"teacher={teacher}").teacher
    for name in [name for name in node if OmegaConf.is_missing(node, name)]:
        node[name] = "/nowhere"
    arguments = OmegaConf.to_container(node, resolve=True)
    module, _, loader = arguments.pop("_target_").rpartition(".")
    assert callable(getattr(importlib.import_module(module), loader))
    with torch.device("meta"):
        built = importlib.import_module(module).architecture(**arguments)
    assert isinstance(built, Teacher) and built.scale == 4
    assert sum(p.numel() for p in built.unet.parameters()) > 8.6e8


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("command", ["train", "eval"])
def test_data(command, data, tmp_path):
    node = OmegaConf.load(CONF / "data" / f"{data}.yaml")
    folders = [option for option in FOLDERS if option.split("=")[0].removeprefix("data.") in list(node)]
    if data == "separate":
        validation = make(tmp_path, "realsr", DATA_SETS["realsr"].layouts[0])
        folders = ["data.calibration.lq=/lq", "data.calibration.gt=/gt", f"data.validation.root={validation}"]
    if "name" in node:  # A benchmark is looked for at once.
        folders = [f"data.root={make(tmp_path, data, DATA_SETS[data].layouts[0])}"]
    built = instantiate(configuration(f"data={data}", *folders, name=command).data)
    assert isinstance(built, FramesDataModule) and built.seed == 0


@pytest.mark.parametrize(("calibration", "measured"), [("photos", "images.root"), ("motion", "clips.gt")])
def test_packaged_data_can_calibrate_where_another_set_is_measured(calibration, measured):
    measured, folder = measured.split(".")
    chosen = [f"data@data.calibration={calibration}", f"data@data.validation={measured}"]
    built = instantiate(configuration("data=separate", *chosen, f"data.validation.{folder}=/nowhere").data)
    assert built.sources[0].validation_share == 0


def test_every_benchmark_has_a_preset():
    presets = {node.name for node in map(OmegaConf.load, (CONF / "data").glob("*.yaml")) if "name" in node}
    assert presets == DATA_SETS.keys() - {"images", "clips"}


@pytest.mark.parametrize("trainer", options("trainer"))
def test_trainer(trainer):
    cfg = configuration(f"trainer={trainer}", "trainer.accelerator=cpu")
    assert isinstance(instantiate(cfg.trainer, logger=False, enable_checkpointing=False), Trainer)


@pytest.mark.parametrize("logger", options("logger"))
def test_logger(logger, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    cfg = configuration(f"logger={logger}")
    cfg.run_dir = str(tmp_path)
    built = {name: instantiate(node) for name, node in cfg.logger.items()}
    assert "csv" in built
    assert Path(built["csv"].log_dir) == tmp_path


@pytest.mark.parametrize("metrics", options("metrics"))
@pytest.mark.parametrize("command", ["train", "eval"])
def test_metrics(command, metrics):
    chosen = choose(**configuration(f"metrics={metrics}", name=command).metrics)
    assert set(chosen.names()) == (set() if metrics == "default" else set(URLS) - {"dover"})


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert text.startswith("# @package _global_")
    folder = ["data.root=/images"] if "/data: images" in text else []
    cfg = configuration(f"experiment={experiment}", *folder)
    assert resolved(cfg)["method"]["_target_"].startswith("quantsr.")


def test_defaults_are_the_demo():
    cfg = resolved(configuration())
    assert cfg["method"]["_target_"].endswith("QArtSR")
    assert (cfg["bits"]["weight"], cfg["bits"]["act"]) == (4, 4)
    assert cfg["teacher"]["weights"] == "tiny_image" and cfg["data"]["_target_"].endswith("PhotosDataModule")


def test_seed_reaches_everything_that_draws():
    cfg = resolved(configuration("seed=7"))
    assert cfg["data"]["seed"] == cfg["method"]["seed"] == 7


HELP = {
    "train.py": [
        *("photos", "realsr", "passionsr", "w4a4", "ckpt_path=RUN", "the options of the first run"),
        *("hydra/launcher: submitit_local, ", "  micro_batch: null  ", "# training steps between checkpoints"),
    ],
    "eval.py": ["data: clips, ", "metrics: default, papers", "  tile: null  ", "# side in output pixels", "data.root="],
    "export.py": ["  artefact: ???  ", "# an artefact folder or a run folder", "quantsr.speed"],
    "import.py": ["teacher: mgldvsr, ", "bits: w2a2, ", "  files: ???", "# PassionSR: unet_ckpt"],
}
ELSEWHERE = {
    "train.py": ["experiment/base"],
    "eval.py": ["method:", "bits:"],
    "export.py": ["data", "method", "teacher:"],
    "import.py": ["data:"],
}
"""Groups that a command does not have, or that are none of the user's."""


@pytest.mark.parametrize("script", HELP)
def test_help_shows_what_applies_without_loading_torch(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]  # Lists every module it loads in its error stream.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in loaded and not loaded & {"torch", "lightning", "diffusers", "numpy"}
    for word in ("Examples:", *HELP[script]):
        assert word in done.stdout
    for word in ("powered by Hydra", *ELSEWHERE.get(script, [])):
        assert word not in done.stdout
