"""What computes where, and what is refused before a kernel reads past an end."""

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from quantsr.kernels import Window, dispatch, product, reference
from tests.kernels.operands import LINEAR, WINDOWS, random_input, random_weight
from tests.kernels.test_window import CUBE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_takes_the_reference():
    assert dispatch.implementation(CPU, "auto") is reference


def test_a_gpu_takes_triton_but_for_windows_that_it_does_not_know():
    pytest.importorskip("triton")
    assert dispatch.implementation(CUDA, "auto").__name__ == "quantsr.kernels.triton.launch"
    assert dispatch.implementation(CUDA, "auto", WINDOWS["conv3d_over_time"][0]) is not reference
    assert dispatch.implementation(CUDA, "auto", CUBE) is reference
    assert dispatch.implementation(CUDA, "reference") is reference


def test_a_gpu_without_triton_takes_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    assert dispatch.implementation(CUDA, "auto") is reference
    with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
        dispatch.implementation(CUDA, "triton")


def test_triton_on_a_cpu_is_refused_outside_of_its_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"needs tensors on a CUDA GPU or TRITON_INTERPRET=1, not cpu"):
        dispatch.implementation(CPU, "triton")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of"):
        dispatch.implementation(CPU, "cutlass")


AT = SimpleNamespace(device=torch.device("cuda:1"))
CODES = SimpleNamespace(codes=AT)
CALLS = {
    "quantize": lambda: dispatch.quantize(AT, None, None, 8, (4,)),
    "quantize_tokens": lambda: dispatch.quantize_tokens(AT, 8, (4,), True),
    "accumulate": lambda: dispatch.accumulate(CODES, None, LINEAR),
    "product": lambda: dispatch.product(CODES, None, LINEAR),
    "attention": lambda: dispatch.attention(CODES, CODES, CODES, None, 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_kernels_are_launched_on_the_gpu_of_the_tensors(monkeypatch, name):
    events = []

    @contextmanager
    def device(chosen):
        events.append(chosen)
        yield
        events.append("left")

    module = SimpleNamespace(**{name: lambda *_: events.append(name)})
    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr(dispatch, "implementation", lambda *_: module)
    for check in ("check", "check_attention"):
        monkeypatch.setattr(dispatch, check, lambda *_: None)
    CALLS[name]()
    assert events == [AT.device, name, "left"]


def test_nothing_needs_triton_to_be_imported():
    """In a process where importing triton fails, products are computed all the same."""
    code = """
import sys
sys.modules["triton"] = None
import torch
import quantsr.quant.integer
from tests.kernels.operands import LINEAR, random_input, random_weight
from quantsr.kernels import product
assert product(random_input((4,), (5,)), random_weight(6, 1, (5,)), LINEAR).shape == (4, 6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_importing_kernels_does_not_import_triton():
    code = "import sys, quantsr.quant.integer, quantsr.kernels; assert 'triton' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


X, W = random_input((4,), (5, 3)), random_weight(6, 1, (5, 3))


@pytest.mark.parametrize(
    ("x", "weight", "window", "message"),
    [
        (random_input((4,), (8,)), W, LINEAR, "64 aligned channels in 1 parts .* 128 channels in 2 parts"),
        (X, W, Window((3,), (1,), (1,), (1,)), "window of 3 taps"),
        (X, replace(W, scale=W.scale[:5]), LINEAR, "sums and scales of these sizes"),
        (X, W, Window((1, 1), (1, 1), (0, 0), (1, 1)), "window over 2 axes does not go with codes of 2 axes"),
        (random_input((1,), (2**17,)), random_weight(1, 1, (2**17,)), LINEAR, "131072 products are summed in int32"),
    ],
    ids=["parts", "taps", "scales", "axes", "overflow"],
)
def test_operands_that_do_not_go_together_are_refused(x, weight, window, message):
    with pytest.raises(ValueError, match=message):
        product(x, weight, window)
