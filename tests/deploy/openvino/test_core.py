"""A process that ran OpenVINO models takes signals as before."""

import subprocess
import sys

import pytest

SIGNAL = """
import faulthandler, os, signal
import numpy as np, openvino as ov, openvino.opset13 as op
from quantsr.deploy.openvino.networks import compile_model, fast_precision

faulthandler.enable()  # Handlers run on a stack of their own from here on.
signal.signal(signal.SIGUSR1, lambda *_: print("taken"))
fast_precision()
for side in (4, 8, 16):
    x = op.parameter([1, 3, side, side], np.float32)
    compiled = compile_model(ov.Model([op.relu(x)], [x]), [(1, 3, side, side)], "f32")
del compiled
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_signal_is_taken_after_models_were_compiled(python):
    found = subprocess.run([python, "-c", SIGNAL], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "taken\n"), found.stderr
