"""The kernels compile for GPUs, on any machine, to what they are written for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "compile_for_gpu.py"


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "instruction"), [("86", "mma.sync."), ("90", "wgmma.mma_async.")])
def test_int8_tensor_cores_fed_by_wide_copies(capability, instruction):
    """Ampere (of consumers: it has the least shared memory) and Hopper: copies of a byte, as an unknown alignment makes
    the compiler issue, would show, stores of two, and a loop that reads nothing ahead."""
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root)
    run = subprocess.run(
        [sys.executable, str(SCRIPT), capability], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    lines = [line.split(" ") for line in run.stdout.splitlines()]
    products, attentions, (static, dynamic) = lines[:8], lines[8:-2], lines[-2:]
    assert [name for name, *_ in attentions] == ["attention_64", "attention_128", "attention_192", "attention_512"]
    for name, instructions, shared in attentions:
        assert all(found.startswith(instruction) for found in instructions.split(",")), name
        assert float(shared) <= 1, name
    for name, instructions, shared, copies, ahead, stores in products:
        assert instruction in instructions, name
        assert float(shared) <= 1, name
        assert set(copies.split(",")) <= ({"8", "16"} if "w4a4" in name else {"16"}), name
        assert int(ahead) >= 4 and stores == "16", name
    assert static == ["quantize_static", "16"] and dynamic == ["quantize_dynamic", "16"]
