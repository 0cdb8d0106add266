"""The benchmark of kernels says what it needs, and what it would time computes what it says; how fast, no test says."""

import runpy
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(python):
    run = subprocess.run([python, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and not run.stdout
    assert run.stderr == "the kernels are timed on a CUDA GPU, and torch finds none here: run this where there is one\n"


@pytest.mark.parametrize("kernel", [0, 1, 3])
@pytest.mark.parametrize("variant", ["w8a8", "w4a4", "w4a4 tokens"])
def test_what_is_timed(script, kernel, variant):
    """Both calls have the same output; the sums are exact."""
    layer = script["Layer"]("small", 20, 6, 4, kernel, 2 if kernel == 3 else 1)
    x = script["activation"](layer, 2, "cpu")
    call, exact = script["in_integers"](layer, x, *script["VARIANTS"][variant])
    y, plain = call(), script["in_bf16"](layer, x)()
    assert exact() and y.dtype == plain.dtype == torch.bfloat16
    assert y.shape == (plain.movedim(1, -1).shape if kernel else plain.shape)
    assert y.numel() == layer.rows(2) * layer.outputs


@pytest.mark.parametrize(("heads", "channels", "queries", "keys"), [(2, 40, 9, 9), (1, 80, 4, 33)])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_what_is_timed_of_attention(device, script, backend, heads, channels, queries, keys):
    case = script["Attention"](heads, channels, queries, keys)
    plain, call, near = script["attention_calls"](case, 2, device, backend)
    expected, found = plain().float(), call().float()
    assert near() and found.shape == expected.shape == (2, heads, queries, channels)
    # Probabilities of more than 1/2 are clipped: those of so few keys.
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9


def test_the_roof_is_the_longer_of_operations_and_bytes(script):
    layer, roof = script["Layer"]("large", 1000, 1000, 1000), script["roof"]
    assert roof(layer, 1, 1e12, 1e30, 1) == pytest.approx(2e9 / 1e12)
    assert roof(layer, 1, 1e30, 1e12, 0.5) == pytest.approx((2 * 1e6 + 2 * 1e6 + 0.5e6) / 1e12)
    convolution = script["Layer"]("large", 10, 10, 8, 3, 2)
    assert roof(convolution, 3, 1.0, 1e30, 1) == pytest.approx(2 * 3 * 16 * 100 * 9)


def test_the_roof_of_attention(script):
    case, roof = script["Attention"](2, 10, 100, 50), script["attention_roof"]
    assert roof(case, 3, 1.0, 1e30) == pytest.approx(2 * (2 * 3 * 2 * 100 * 50 * 10))
    assert roof(case, 3, 1e30, 1.0) == pytest.approx(2 * 3 * 2 * 10 * (2 * 100 + 2 * 50))
