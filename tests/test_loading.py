"""Teachers of artefacts and of dry runs."""

import pytest
import torch
from omegaconf import OmegaConf

from quantsr.errors import UserError
from quantsr.loading import build_architecture, load_models, teacher_of
from quantsr.methods.minmax import MinMax
from quantsr.quant.spec import Bits
from quantsr.teachers.micro import MICRO
from quantsr.teachers.one_step import OneStepTeacher

LOADER = {"_target_": "quantsr.teachers.files.new_one_step", "seed": 3, **MICRO}


def test_artefact_names_its_teacher_by_weights(teacher_file, teacher):
    found = teacher_of({"teacher": str(teacher_file), "config": {"teacher": {"_target_": "os.system"}}})
    assert torch.equal(found.unet.conv_in.weight, teacher.unet.conv_in.weight)


def test_artefact_names_its_teacher_by_a_loader():
    found = teacher_of({"teacher": None, "config": {"teacher": LOADER}})
    assert isinstance(found, OneStepTeacher) and found.timestep == MICRO["timestep"]


@pytest.mark.parametrize("config", [{}, {"config": {"teacher": {"_target_": "os.getcwd"}}}], ids=["none", "elsewhere"])
def test_no_other_code_is_called_by_a_file(config):
    with pytest.raises(UserError, match="give teacher=WEIGHTS"):
        teacher_of({"teacher": None, **config})


def test_a_checkpoint_from_before_the_ranges_says_so(teacher, teacher_file, tmp_path):
    method = MinMax(teacher, Bits(4, 4))
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    (tmp_path / "checkpoints").mkdir()
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    bits = {"_target_": "quantsr.quant.spec.Bits", "weight": 4, "act": 4}
    nodes = {
        "method": {"_target_": "quantsr.methods.minmax.MinMax", "bits": bits},
        "teacher": {"_target_": "quantsr.teachers.files.load_teacher", "weights": str(teacher_file)},
    }
    OmegaConf.save(OmegaConf.create({"seed": 0, **nodes}), tmp_path / "config.yaml")
    with pytest.raises(
        UserError, match=r"last\.ckpt is from the beginning of its run, when \d+ layers had no ranges yet"
    ):
        load_models(tmp_path / "checkpoints" / "last.ckpt", None, None)


def test_architecture_takes_no_memory_and_no_files():
    cfg = OmegaConf.create({"seed": 0, "teacher": {"_target_": "quantsr.teachers.osediff.load_osediff"}})
    cfg.teacher.update({"source": "???", "checkpoint": None, "timestep": 499})
    found = build_architecture(cfg)
    assert all(p.is_meta and not p.requires_grad for p in found.parameters())
    assert found.timestep == 499


def test_small_teacher_is_loaded_and_its_weights_let_go(teacher_file):
    node = {"_target_": "quantsr.teachers.files.load_teacher", "weights": str(teacher_file)}
    found = build_architecture(OmegaConf.create({"seed": 0, "teacher": node}))
    assert all(p.is_meta for p in found.parameters()) and found.timestep == MICRO["timestep"]
