"""Teachers in every data type do all that a teacher has to: be copied, saved, quantized, shipped."""

import pytest
import torch
from torch import nn

import quantsr
from quantsr.deploy.artefact import save_student
from quantsr.methods.minmax import MinMax
from quantsr.methods.qartsr import QArtSR
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import fold
from quantsr.quant.spec import Bits
from quantsr.teachers.base import DTYPES, Teacher
from quantsr.teachers.files import load_teacher, save_teacher
from quantsr.teachers.mgldvsr.checkpoints import random_mgldvsr
from quantsr.teachers.micro import MICRO, MICRO_VIDEO
from quantsr.teachers.osediff import random_osediff


@pytest.fixture(params=DTYPES)
def dtype(request) -> str:
    return request.param


@pytest.fixture(params=["osediff", "mgldvsr"])
def teacher(request, dtype) -> Teacher:
    if request.param == "osediff":
        return random_osediff(dtype=dtype, **MICRO)
    return random_mgldvsr(dtype=dtype, **MICRO_VIDEO)


@pytest.fixture
def lq(teacher) -> torch.Tensor:
    clip = () if teacher.frames == 1 else (teacher.frames,)
    return torch.rand(1, *clip, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_twin_shares_every_weight_and_computes_the_same(teacher, lq):
    twin = teacher.twin()
    theirs = teacher.state_dict()
    assert all(tensor.data_ptr() == theirs[name].data_ptr() for name, tensor in twin.state_dict().items())
    assert torch.equal(twin(lq), teacher(lq))


def test_file_keeps_every_bit_of_16(teacher, lq, tmp_path, dtype):
    save_teacher(teacher, tmp_path / "t.safetensors", torch.float32 if dtype == "float32" else None)
    loaded = load_teacher(tmp_path / "t.safetensors")
    assert loaded.dtype == teacher.dtype and loaded.config == teacher.config
    assert torch.equal(loaded(lq), teacher(lq))


def test_names_of_layers_are_those_of_the_tree(teacher):
    layers = {
        name for name, module in teacher.named_modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
    blocks = {part: names for part, names in teacher.blocks().items()}
    for part, prefixes in teacher.parts().items():
        own = {
            name for name in layers if name.startswith(tuple(f"{prefix}." for prefix in prefixes)) or name in prefixes
        }
        held = {name for name in own if any(name == block or name.startswith(f"{block}.") for block in blocks[part])}
        assert held == own
        assert set(teacher.sensitive()[part]) <= own
    assert teacher.concatenations().keys() <= layers
    assert {teacher.entrance, teacher.exit} <= layers


def test_artefact_computes_what_its_student_did(teacher, lq, tmp_path, dtype):
    """Of layers with a low-rank branch and a smoothing in bfloat16, without in the other types."""
    made = (QArtSR if dtype == "bfloat16" else MinMax)(teacher, Bits(8, 8))
    student = made.student
    for observation in ("observe_smoothing", "observe_ranges"):
        with torch.no_grad(), mode(student, observation):
            student(lq)
        settle(student)
    fold(student).eval()
    save_student(student, made.swaps, tmp_path, sum(p.numel() for p in teacher.parameters()), {})
    loaded = quantsr.load(tmp_path)
    with torch.no_grad():
        ours, theirs = loaded(lq), student(lq)
    assert loaded.model.dtype == teacher.dtype
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32 and (theirs - teacher(lq)).abs().mean() < 0.1
