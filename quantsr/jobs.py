"""One job of a sweep: left alone when it is finished, gone on with when it was stopped, else run from its start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from quantsr.errors import UserError

INTERRUPTED = 130
SCRIPT = "QUANTSR_SCRIPT"
"""Variable of the environment: the command's file. A launcher's process on another machine has another ``sys.argv``."""
ASKS_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""SIGUSR2 comes from submitit shortly before a job's time is over."""
PLACES = ("run_dir", "cache_dir", "ckpt_path", "logger")
"""What two runs of the same job may have different: where they read and write."""


def in_launcher() -> bool:
    """Whether this process was started by submitit, for one job."""
    return "SUBMITIT_EXECUTOR" in os.environ


def run_job(cfg: DictConfig) -> float | None:
    """Run the job that Hydra has composed in a process of its own, unless its folder shows that it is finished.

    A job on several devices starts helpers that repeat its command line; in a sweep that line would start the sweep
    again, and a job that dies would take the sweep with it. So every job is a single run with the job's overrides.

    Returns:
        ``cfg.objective`` out of the job's ``metrics.json``, for sweepers that search; None where it has none.

    Raises:
        UserError: the folder holds another job.
        KeyboardInterrupt: the job was stopped on request, and nothing but this process would stop the sweep.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    refuse_another(cfg, folder)
    if (folder / "metrics.json").is_file():
        (folder / "failed").unlink(missing_ok=True)
        print(f"finished {folder}: not run again")
        return objective(cfg, folder)
    code = start(command(folder))
    if code == 0:
        (folder / "failed").unlink(missing_ok=True)
        return objective(cfg, folder)
    (folder / "failed").write_text(f"exit code {code}: {' '.join(HydraConfig.get().overrides.task)}\n")
    if code == INTERRUPTED and not in_launcher():
        raise KeyboardInterrupt
    return None


def refuse_another(cfg: DictConfig, folder: Path) -> None:
    """Refuse to mix two jobs in one folder.

    Raises:
        UserError: the folder, or one of the same number, holds a run of another configuration.
    """
    number = folder.name.partition("_")[0]
    others = [path.parent for path in folder.parent.glob(f"{number}_*/config.yaml") if path.parent != folder]
    for other in others:
        raise UserError(f"{other} holds another job {number} than {folder.name}: give a new hydra.sweep.dir=FOLDER")
    if not (folder / "config.yaml").is_file():
        return
    before = flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
    now = flat(OmegaConf.to_container(cfg, resolve=True))
    for key in sorted(before.keys() | now.keys()):
        if key.partition(".")[0] not in PLACES and before.get(key) != now.get(key):
            raise UserError(
                f"{folder} was run with {key}={before.get(key)}, which is now {now.get(key)}: "
                "give a new hydra.sweep.dir=FOLDER"
            )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: leaf for name, branch in tree.items() for key, leaf in flat(branch, f"{prefix}{name}.").items()}


def command(folder: Path) -> list[str]:
    """The command line of the single run, on the configuration folders that the sweep was given.

    Hydra's own files in the folder are the sweep's: they say what the job is, not that it was gone on with.
    """
    hydra = HydraConfig.get()
    sources = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    line = [sys.executable, os.environ[SCRIPT], "--config-name", hydra.job.config_name]
    for option, provider in (("--config-path", "main"), ("--config-dir", "command-line")):
        line += [option, sources[provider]] if provider in sources else []
    line += [override for override in hydra.overrides.task if not override.startswith("run_dir=")]
    checkpoint = resumable(folder)
    if checkpoint:
        print(f"resuming {checkpoint}")
        line.append(f"ckpt_path={quoted(checkpoint)}")
    return [*line, f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]


def quoted(path: Path) -> str:
    """A path as a Hydra value."""
    return "'" + str(path).replace("'", "\\'") + "'"


def resumable(folder: Path) -> Path | None:
    """The newest checkpoint of a job that was stopped or killed.

    One that failed by itself begins anew, without its old checkpoints: what it failed of may be in them.
    """
    failed = folder / "failed"
    text = failed.read_text() if failed.is_file() else ""
    if text and not text.startswith((f"exit code {INTERRUPTED}:", "exit code -")):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return max(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def start(line: list[str]) -> int:
    """Run a command, with the sweep's folder as its group in W&B; its exit code.

    The process is in a group of its own, so that Ctrl-C reaches it once, from here, and it can save.
    """
    group = Path(HydraConfig.get().sweep.dir).name
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0", "WANDB_RUN_GROUP": group}
    process = subprocess.Popen(line, env=environment, process_group=0)
    with passed_on(process):
        return process.wait()


@contextmanager
def passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ask the process to stop when this one is asked to; a second time, a while later, means at once."""
    last = -float("inf")

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > 2:  # submitit sends SIGINT too, to a task that has it from the terminal.
            last = time.monotonic()
            process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in ASKS_TO_STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def objective(cfg: DictConfig, folder: Path) -> float | None:
    """The figure that a search is for: ``cfg.objective``, such as ``fidelity_psnr`` or ``student.psnr_y``.

    Raises:
        UserError: the job has no such figure.
    """
    key, path = cfg.get("objective"), folder / "metrics.json"
    if key is None or not path.is_file():  # Only the first process of a job on several nodes is sure to see it.
        return None
    figures = flat(json.loads(path.read_text()))
    if not isinstance(figures.get(key), int | float):
        numbers = ", ".join(name for name, value in figures.items() if isinstance(value, int | float))
        raise UserError(f"objective={key} is not in {path}: choose one of {numbers}")
    return float(figures[key])
