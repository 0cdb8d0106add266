"""The rows of the papers' tables: each experiment says what the authors did, and runs dry at full size."""

import subprocess

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from quantsr.check import check_types
from quantsr.data.layouts import DATA_SETS
from quantsr.data.separate import SeparateDataModule
from quantsr.loading import build_teacher
from quantsr.run import dry_run
from quantsr.teachers.one_step import OneStepTeacher
from tests.conf.test_conf import CONF, configuration, resolved
from tests.conftest import ROOT
from tests.data.folders import make

LQ = "data.calibration.lq=/lr"
UNET, MODEL = "865.91 M", "935.32 M"  # parameters of the denoisers, METHODS: OSEDiff's and MGLD-VSR's
EPSILON, CLIP_EPSILON = "{} x 4 x 64 x 64", "{} x 5 x 4 x 64 x 64"

PASSIONSR = {
    "method.observation_steps": 125,
    "method.observation_batch": 4,
    "method.alpha": 0.3,
    "method.steps": 1000,
    "method.transform_lr": 1e-5,
    "method.bounds_lr": 1e-5,
    "method.relative_lr": False,
    "method.quantize_bias": False,
    "data.calibration.batch_size": 1,
    "data.calibration.crop": 512,
    "data.calibration.validation_share": 0,
    "teacher.timestep": 999,
}
WITH_VAE = {"method.parts": ["encoder", "denoiser", "decoder"], "method.drop": 0.2}
UNET_ALONE = {"method.parts": ["denoiser"], "method.drop": 0.1}
QARTSR = {
    "method.parts": ["denoiser"],
    "method.rank": 32,
    "method.update_rank": 32,
    "method.order": "reversed",
    "method.perceptual": "lpips",
    "data.calibration.crop": 512,
    "teacher.timestep": 999,
}
QUANTVSR = {
    "method.parts": ["denoiser"],
    "method.attention": False,
    "method.pairs": 1800,
    "method.percentile": 0.25,
    "method.smallest_rank": 16,
    "method.largest_rank": 64,
    "method.rank_multiple": 8,
    "method.refinement_steps": 900,
    "method.refinement_lr": 1e-3,
    "method.alignment_steps": 900,
    "method.alignment_lr": 1e-3,
    "data.calibration.batch_size": 4,
    "data.calibration.frames": 5,
    "data.calibration.crop": 512,
    "micro_batch": 1,
    "trainer.precision": "bf16-mixed",
    "teacher.steps": 50,
    "teacher.guidance": -10.0,
}
ROWS = {
    "passionsr_w8a8_uv": PASSIONSR | WITH_VAE,
    "passionsr_w6a6_uv": PASSIONSR | WITH_VAE,
    "passionsr_w8a8_u": PASSIONSR | UNET_ALONE,
    "passionsr_w6a6_u": PASSIONSR | UNET_ALONE,
    "qartsr_w4a4": QARTSR,
    "qartsr_w3a3": QARTSR,
    "qartsr_w2a2": QARTSR,
    "quantvsr_w6a6": QUANTVSR,
    "quantvsr_w4a4": QUANTVSR,
}
"""What the authors say of each, as METHODS gives it (sections 3 to 5)."""


def row(name: str, *overrides: str):
    """The configuration of an experiment."""
    return configuration(f"experiment={name}", LQ, *overrides)


def test_every_row_has_its_figures_here():
    files = {path.stem for path in (CONF / "experiment").glob("*.yaml") if "base/" in path.read_text()}
    assert files == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_figures_are_the_authors(name):
    cfg = resolved(row(name))
    assert f"w{cfg['bits']['weight']}a{cfg['bits']['act']}" in name
    for key, expected in ROWS[name].items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        assert value == expected, key


@pytest.mark.parametrize("name", ["quantvsr_w6a6", "quantvsr_w4a4"])
def test_complexity_is_measured_on_every_pair_once(name):
    cfg = row(name)
    assert cfg.method.complexity_steps * cfg.data.calibration.batch_size == cfg.method.pairs


@pytest.mark.parametrize("name", [*ROWS, "qartsr_trq"])
def test_data_is_the_authors_set_and_their_benchmark(name, tmp_path):
    benchmark = "reds4" if "quantvsr" in name else "realsr"
    root = make(tmp_path, benchmark, DATA_SETS[benchmark].layouts[0])
    hr = ["data.calibration.gt=/hr"] if name == "qartsr_trq" else []  # Training a teacher needs it.
    data = instantiate(row(name, f"data.validation.root={root}", *hr).data)
    assert isinstance(data, SeparateDataModule)
    assert data.frames == (5 if "quantvsr" in name else 1)


def test_benchmark_can_be_another():
    pairs = ["data@data.validation=pairs", "data.validation.lq=/a", "data.validation.gt=/b"]
    cfg = row("passionsr_w8a8_u", *pairs)
    assert instantiate(cfg.data).sources[1].lq.as_posix() == "/a"


def test_teacher_can_be_a_retrained_one():
    cfg = row("qartsr_w4a4", "teacher=tiny_image")
    assert isinstance(build_teacher(cfg), OneStepTeacher)


@pytest.mark.parametrize("name", ROWS)
def test_head_says_which_row_and_how_to_run_it(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"#   python train.py experiment={name} " in text
    assert "Table" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["passionsr_w8a8_uv", "quantvsr_w4a4", "qartsr_trq"])
def test_dry_run_at_full_size(name, capsys):
    """Other rows differ from one of these, or from that of the next test, in bits or lack some of its parts."""
    cfg = configuration(f"experiment={name}", "debug=shapes")  # No folder and no file is given.
    dry_run(cfg)
    check_page(capsys.readouterr().out, name, cfg)


@pytest.mark.slow
def test_dry_run_from_the_command_line_leaves_nothing(python, tmp_path):
    command = [python, str(ROOT / "train.py"), "experiment=qartsr_w2a2", "debug=shapes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_page(done.stdout, "qartsr_w2a2", row("qartsr_w2a2"))
    assert not list(tmp_path.iterdir())


def check_page(page: str, name: str, cfg) -> None:
    """What a dry run prints."""
    epsilon = (CLIP_EPSILON if "quantvsr" in name else EPSILON).format(cfg.data.calibration.batch_size)
    for part in ("dry run", MODEL if "quantvsr" in name else UNET, epsilon, "512 x 512", "plan: "):
        assert part in page
    if name in ROWS:
        check_saved(page, cfg.bits.weight)


def check_saved(page: str, bits: int) -> None:
    """Parameters of the denoiser that are saved: at most 1 - bits / 32, and not much less with a 16-bit branch."""
    line = next(line.split() for line in page.splitlines() if line.startswith("denoiser") and "%" in line)
    share = float(line[1])
    assert 100 * (1 - bits / 32) - 4 < share <= 100 * (1 - bits / 32)


@pytest.mark.parametrize("name", ROWS)
def test_values_are_of_the_types_that_their_keys_take(name):
    check_types(row(name, "data.validation.root=/benchmark"))


def test_base_experiments_leave_no_trace_in_a_run():
    assert "base" not in OmegaConf.to_container(row("qartsr_w4a4"), resolve=True)
