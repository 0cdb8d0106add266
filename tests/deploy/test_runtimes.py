"""The first runtime that can be used is taken; one that cannot says why."""

import sys
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pytest
import torch

import quantsr
from quantsr.deploy import openvino, runtimes
from quantsr.deploy.artefact import load_student
from quantsr.errors import UserError


@pytest.fixture
def fast(monkeypatch) -> ModuleType:
    """A runtime in front of all others; what it answers can be set."""
    module = ModuleType("fast")
    module.reason, module.loaded = None, []
    module.available = lambda folder, device: module.reason

    def load(folder, device):
        module.loaded.append((folder, device))
        return load_student(folder)

    module.load = load
    monkeypatch.setitem(sys.modules, "fast", module)
    monkeypatch.setattr(runtimes, "RUNTIMES", {"fast": "fast", **runtimes.RUNTIMES})
    return module


def test_auto_takes_the_first_that_is_available(fast, image_run):
    pipe = quantsr.load(image_run, device="cpu")
    assert pipe.runtime == "fast" and fast.loaded == [(image_run / "artefact", "cpu")]
    fast.reason = "it is asleep"
    assert quantsr.load(image_run, device="cpu").runtime == "torch"


def test_a_runtime_by_name(fast, image_run):
    assert quantsr.load(image_run, runtime="torch", device="cpu").runtime == "torch"
    assert not fast.loaded
    fast.reason = "it is asleep"
    with pytest.raises(UserError, match="runtime=fast cannot be used here: it is asleep"):
        quantsr.load(image_run, runtime="fast", device="cpu")


def test_unknown_names(image_run):
    with pytest.raises(UserError, match=r"runtime takes one of \['auto', .*'torch'\], not 'fastest'"):
        quantsr.load(image_run, runtime="fastest")
    for device in ("gpu", "mps", "meta"):
        with pytest.raises(UserError, match=f"device takes cpu, cuda or cuda:NUMBER, not '{device}'"):
            quantsr.load(image_run, device=device)


def test_a_gpu_that_is_not_there(image_run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="runtime=torch cannot be used here: PyTorch sees no GPU for device=cuda"):
        quantsr.load(image_run, device="cuda", runtime="torch")
    assert quantsr.load(image_run).device.type == "cpu"


def test_a_gpu_beyond_those_that_are_there(image_run, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="there is no device=cuda:2: GPUs are counted from cuda:0, and PyTorch sees 2"):
        quantsr.load(image_run, device="cuda:2")


def test_openvino_is_taken_by_itself_once_a_student_was_exported(image_run, tmp_path):
    run = tmp_path / "run"
    copytree(image_run, run)
    assert quantsr.load(run, device="cpu").runtime == "torch"
    openvino.export(run)
    pipe = quantsr.load(run, device="cpu")
    assert pipe.runtime == "openvino"
    assert pipe(torch.rand(3, 9, 7)).shape == (3, 36, 28)


@pytest.fixture
def exported(image_run, tmp_path) -> Path:
    """An exported run."""
    openvino.export(copytree(image_run, tmp_path / "run"))
    return tmp_path / "run"


def test_an_export_that_is_not_whole_is_none(exported):
    folder = exported / "artefact" / "openvino"
    for name in ("decoder.bin", "denoiser.xml", "openvino.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        assert quantsr.load(exported, device="cpu").runtime == "torch"
        (folder / name).write_bytes(content[: len(content) // 2])
        assert quantsr.load(exported, device="cpu").runtime == "torch"
        (folder / name).write_bytes(content)
    assert quantsr.load(exported, device="cpu").runtime == "openvino"


def test_nor_is_one_of_other_weights(exported, dynamic_run, lq):
    copytree(dynamic_run / "artefact", exported / "artefact", dirs_exist_ok=True)
    pipe = quantsr.load(exported, device="cpu")
    assert pipe.runtime == "torch" and torch.equal(pipe(lq), quantsr.load(dynamic_run, device="cpu")(lq))


def test_an_exported_model_that_cannot_be_read(exported):
    path = exported / "artefact" / "openvino" / "decoder.xml"
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(UserError, match=r"decoder\.xml cannot be read: run export\.py again"):
        quantsr.load(exported, device="cpu")


def test_openvino_takes_clips(video_run):
    pipe = quantsr.load(video_run, runtime="openvino", device="cpu")
    assert pipe(torch.rand(1, 4, 3, 9, 7)).shape == (1, 4, 3, 36, 28)


def test_openvino_says_what_it_cannot_take(image_run, monkeypatch):
    monkeypatch.setattr("quantsr.deploy.runtimes.openvino.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package openvino is missing: pip install 'quantsr\[openvino\]'"):
        quantsr.load(image_run, runtime="openvino", device="cpu")


def test_the_kernels_want_a_gpu(image_run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="runtime=triton cannot be used here: it runs on an NVIDIA GPU, not on cpu"):
        quantsr.load(image_run, runtime="triton", device="cpu")


def test_torch_is_the_last_of_the_order():
    assert list(runtimes.RUNTIMES)[-1] == "torch"
