"""The page of a dry run."""

import pytest
import torch

from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.teacher import TeacherTraining
from quantsr.metrics.operations import without_weights
from quantsr.quant.spec import Bits
from quantsr.shapes import show_shapes, tensor_shapes
from tests.conftest import micro_teacher, micro_video_teacher

METHODS = [MinMax, PassionSR, QArtSR]


@pytest.fixture
def meta():
    return without_weights(micro_teacher()).freeze()


def page(method, capsys, batch: int = 2, crop: int = 32) -> str:
    show_shapes(method, batch, crop, "a dry run")
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", METHODS)
def test_shapes_are_those_of_a_real_run(kind, meta, capsys):
    text = page(kind(meta, Bits(4, 4)), capsys)
    real = tensor_shapes(micro_teacher(), torch.rand(2, 3, 8, 8))
    for name, shape in real.items():
        assert f"{name} {' x '.join(map(str, shape))}" in " ".join(text.split())
    assert real["sr"] == (2, 3, 32, 32)


def test_clips(capsys):
    text = page(MinMax(without_weights(micro_video_teacher()).freeze(), Bits(4, 4)), capsys, batch=1)
    assert "segments of 3 frames" in text and "1 x 3 x 3 x 32 x 32" in text


def test_stages_of_modules_share_a_row(meta, capsys):
    method = QArtSR(meta, Bits(4, 4), module_steps=7, extended_steps=9)
    rows = [line for line in page(method, capsys).splitlines() if line.startswith("module ")]
    assert len(rows) == 1
    assert rows[0].startswith("module unet.conv_out ... unet.time_embedding")
    assert f" {len(method.blocks)} " in rows[0] and " 7 " in rows[0]


def test_plan_says_how_fast_and_how_much(meta, capsys):
    method = PassionSR(meta, Bits(8, 8), transform_lr=3e-5, steps=11, drop=0.1)
    [row] = [line for line in page(method, capsys).splitlines() if line.startswith("denoiser.transforms")]
    trained = sum(p.numel() for stage in method.plan if stage.name == "denoiser.transforms" for p in stage.parameters)
    for part in ("Adam", "3e-05", "drop half way (factor 0.1)", " 11 ", f"{trained / 1e6:.2f} M"):
        assert part in row


def test_kept_layers_are_listed(meta, capsys):
    rows = page(MinMax(meta, Bits(4, 4), parts=["denoiser"]), capsys).splitlines()
    kept = [line.split()[0] for line in rows if "layers" in line and "kept in full precision" in line]
    assert kept == ["encoder", "decoder"]


def test_a_teacher_in_training_has_its_plan(meta, capsys):
    text = page(TeacherTraining(meta, steps=13), capsys)
    assert "plan: 13 steps" in text and "saved" not in text


def test_a_student_of_other_shapes_is_found(meta):
    method = MinMax(meta, Bits(4, 4))
    method.student.scale = 2
    with pytest.raises(ValueError, match="the student's tensors are"):
        show_shapes(method, 1, 32, "")
