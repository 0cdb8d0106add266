"""A command that is killed or stopped in a stage goes on from its last checkpoint to the same result."""

import json
import select
import signal
import time

import pytest
from safetensors.torch import load_file
from torch import equal

OPTIONS = ["method=passionsr", "method.steps=6", "method.parts=[decoder]", "checkpoint_every=3"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(micro) -> list[str]:
    return [*micro, *OPTIONS]


@pytest.fixture(scope="module")
def undisturbed(run, options, tmp_path_factory):
    """The artefact of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run("train.py", *options, f"hydra.run.dir={folder}").code == 0
    return load_file(folder / "artefact" / "student.safetensors")


def wait_for(process, text: str, seconds: float = 120) -> None:
    """Read the output until a line has the text."""
    end = time.monotonic() + seconds
    seen = ""
    while time.monotonic() < end:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            seen += line
            if text in line:
                return
            if not line:
                break
    raise AssertionError(f"'{text}' did not come; there was:\n{seen}\n{process.stderr.read()}")


def assert_same(tensors, others) -> None:
    assert tensors.keys() == others.keys()
    assert all(equal(tensor, others[name]) for name, tensor in tensors.items())


def test_killed_in_a_stage(start, run, options, undisturbed, tmp_path):
    process = start("train.py", *options, f"hydra.run.dir={tmp_path / 'killed'}")
    wait_for(process, " decoder.bounds, loss")
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert not (tmp_path / "killed" / "artefact").exists()
    result = run("train.py", *options, f"ckpt_path={last}", f"hydra.run.dir={tmp_path / 'resumed'}")
    assert result.code == 0, result.err
    assert "resum" not in result.err
    assert "[ 0/" not in result.out
    assert "seconds" not in json.loads((tmp_path / "resumed" / "metrics.json").read_text())  # Of the last part alone.
    assert_same(load_file(tmp_path / "resumed" / "artefact" / "student.safetensors"), undisturbed)


def test_stopped_by_ctrl_c(start, run, options, undisturbed, tmp_path):
    process = start("train.py", *options, f"hydra.run.dir={tmp_path / 'stopped'}")
    wait_for(process, " decoder.transforms, loss")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    saved = tmp_path / "stopped" / "checkpoints" / "interrupted.ckpt"
    assert err.splitlines()[-1] == f"stopped; resume with ckpt_path={saved}"
    assert "SIGINT: finishing this step" in err and "Traceback" not in err
    result = run("train.py", *options, f"ckpt_path={saved}", f"hydra.run.dir={tmp_path / 'resumed'}")
    assert result.code == 0, result.err
    assert_same(load_file(tmp_path / "resumed" / "artefact" / "student.safetensors"), undisturbed)
