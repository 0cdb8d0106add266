"""Loading takes the memory of the loaded weights and little more.

What counts is anonymous memory (RssAnon): what has no file behind it. Pages of a mapped file are in the resident size
too, but the kernel drops them whenever it needs room.
"""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantsr.teachers.osediff import random_osediff
from tests.conftest import ROOT
from tests.teachers.osediff.conftest import MICRO

LARGE = {**MICRO, "unet": {**MICRO["unet"], "block_out_channels": [320, 640], "norm_num_groups": 32}}
LOAD = """
import sys, threading
import torch
from quantsr.teachers.osediff import load_osediff
torch.zeros(1).to(torch.bfloat16)

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

done, peak, before = threading.Event(), 0, anonymous()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
teacher = load_osediff(sys.argv[1], prompt_file=sys.argv[2], dtype=sys.argv[3], **{config})
peak = max(peak, anonymous())
done.set()
watcher.join()
print(peak - before, sum(tensor.nbytes for tensor in teacher.state_dict().values()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with a single file and the same in diffusers' layout, 400 MB each."""
    path = tmp_path_factory.mktemp("large")
    teacher = random_osediff(**LARGE)
    for name in ("unet", "vae"):
        (path / name).mkdir()
        tensors = getattr(teacher, name).state_dict()
        save_file(tensors, path / name / "diffusion_pytorch_model.safetensors")
    (path / "pickles").mkdir()
    for name in ("unet", "vae"):
        (path / "pickles" / name).mkdir()
        torch.save(getattr(teacher, name).state_dict(), path / "pickles" / name / "diffusion_pytorch_model.bin")
    torch.save(teacher.prompt_embedding, path / "prompt.pt")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="counts memory as Linux does")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["", "pickles"], ids=["safetensors", "pickles"])
def test_loading_takes_at_most_a_fifth_more_than_the_weights(python, large, form, dtype):
    code = LOAD.replace("{config}", repr(LARGE))
    command = [python, "-c", code, str(large / form), str(large / "prompt.pt"), dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, size = map(int, done.stdout.split())
    assert size > (3e8 if dtype == "float32" else 1.5e8)
    assert 0.9 * size < peak < 1.2 * size
