"""From a command line to a run: errors in one sentence, sweeps as one process a job."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from quantsr.errors import Interrupted, UserError
from quantsr.sweep import print_jobs, read_jobs, write_jobs

USER, INTERRUPTED = 2, 130


def command_line(main: Callable[[], None]) -> None:
    """Run a Hydra main function; what the user can put right ends in one sentence on standard error and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to here.
    # Read when torch is imported, later. DDP's C++ complains, once, of stages in which all parameters take part.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with one_sentence():
        main()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn what the user can put right, and a stop on request, into a message and an exit code."""
    from hydra.errors import HydraException
    from hydra.errors import InstantiationException as Failed
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except Interrupted as stop:
        first = int(os.environ.get("LOCAL_RANK", "0")) == 0
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(INTERRUPTED if first else 0)  # A helper's non-zero exit would kill the main process.
    except Failed as error:
        # What a constructor refuses is the user's to change; anything else it raises is a bug.
        reason = error.__cause__
        unknown_key = isinstance(reason, TypeError) and "unexpected keyword" in str(reason)
        if not (unknown_key or isinstance(reason, UserError | ValueError)):
            raise
        sys.exit(_say(reason))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(error))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_say(f"cannot use {error.filename}: {error.strerror}"))
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # Hydra's own, of no class of its own.
            raise
        sys.exit(_say("groups such as bits= take the name of an option (see --help), not a number or null"))


def _say(error: object) -> int:
    # Hydra writes several lines: lists, a search path, its own types.
    text = re.split(r"\n(?:Config search path|\s*full_key):", str(error).strip())[0]
    for lines, joined in ((r":\n\s+", ": "), (r"\n\s+(?=\w)", ", "), (r"\.?\n+", "; ")):
        text = re.sub(lines, joined, text)
    print(f"error: {text}", file=sys.stderr)
    return USER


def launch(cfg: DictConfig, command: str) -> None:
    """Run one job: here, or in a process of its own when it belongs to a sweep.

    A job on several devices starts helpers that repeat its command line; in a sweep that line would start the sweep
    again, and a job that dies would take the sweep with it. So every job of a sweep is its own single run, with the
    job's overrides.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        from quantsr import run
        from quantsr.check import check_types

        with one_sentence():  # Inside Hydra too, which would put the whole command line above the sentence.
            check_types(cfg)
            getattr(run, command)(cfg)
        return
    overrides = [override for override in hydra.overrides.task if not override.startswith("run_dir=")]
    single = [sys.executable, sys.argv[0], *overrides, f"hydra.run.dir={_quoted(hydra.runtime.output_dir)}"]
    code = subprocess.run(single, env={**os.environ, "HYDRA_FULL_ERROR": "0"}).returncode
    if code:
        Path(hydra.runtime.output_dir, "failed").write_text(f"exit code {code}: {' '.join(overrides)}\n")
    if code == INTERRUPTED:
        raise Interrupted(Path(hydra.runtime.output_dir, "checkpoints", "interrupted.ckpt"))


def _quoted(path: str) -> str:
    """A path as a Hydra value."""
    return "'" + path.replace("'", "\\'") + "'"


class SweepTable(Callback):
    """Hydra callback: one table over all jobs when a sweep ends, also as files in the sweep's folder.

    Failed jobs are named, and the sweep then exits with an error.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = read_jobs(folder)
        finished = [job for job in jobs if job.metrics is not None]
        failed = [job for job in jobs if (job.folder / "failed").is_file()]
        if finished:
            print_jobs(finished)
            csv, markdown = write_jobs(finished, folder)
            print(f"table    {csv}\n         {markdown}")
        print(f"sweep    {folder}")
        if failed:
            names = ", ".join(f"{job.folder.name} ({job.label})" if job.differs else job.folder.name for job in failed)
            sys.exit(_say(f"{len(failed)} of {len(failed) + len(finished)} jobs failed: {names}"))
