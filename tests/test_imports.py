"""What importing a package leaves alone: a command or a notebook waits for what it imports."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LEFT_ALONE = {
    "quantsr": ["torch", "lightning", "hydra", "diffusers", "pyiqa", "wandb", "transformers", "numpy"],
    "quantsr.data": ["skimage", "sklearn", "diffusers", "pyiqa", "wandb"],
    # transformers cannot be asked for here: torchmetrics, and so Lightning, imports it by itself.
    "quantsr.metrics.fidelity": ["pyiqa", "wandb"],
    "quantsr.run": ["pyiqa", "wandb"],
}
PROGRAM = """
import importlib, json, sys
for name, modules in json.loads(sys.argv[1]).items():
    importlib.import_module(name)
    print(name, *(module for module in modules if module in sys.modules))
"""


@pytest.mark.slow
def test_heavy_modules_are_imported_only_where_they_are_used():
    """One after the other in one process: what one loads would show in the next."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(LEFT_ALONE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(LEFT_ALONE)
