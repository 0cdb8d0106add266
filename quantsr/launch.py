"""From a command line to a run: errors in one sentence, sweeps as one process a job."""

import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from quantsr import help, jobs
from quantsr.errors import Interrupted, UserError
from quantsr.keys import about_key, refuse_added

USER = 2
SHOWN = frozenset({"--help", "-h", "--cfg", "-c"})
"""Options of Hydra that print and do nothing else."""
_sweep: Path | None = None  # the folder of the sweep that this process is in charge of


def command_line(main: Callable[[], None]) -> None:
    """Run a Hydra main function; what the user can put right ends in one sentence on standard error and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through to here.
    script = Path(sys.argv[0]).absolute()
    os.environ[jobs.SCRIPT] = str(script)
    help.register(script.parent / "conf")
    # Read when torch is imported, later. DDP's C++ complains, once, of stages in which all parameters take part.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Our files stand in for a plugin's, so that they say what is missing where it is not installed.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.* is validated against ConfigStore schema")
    with one_sentence():
        try:
            main()
        except OSError as error:
            if error.filename is None:
                raise
            # Hydra could not make the run's folder: what the run itself meets is a sentence by now.
            raise UserError(
                f"cannot use {error.filename}: {error.strerror}; give another hydra.run.dir=FOLDER"
            ) from error


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
        sys.exit(jobs.INTERRUPTED if first else 0)  # A helper's non-zero exit would kill the main process.
    except KeyboardInterrupt:
        how = f"; the same command with hydra.sweep.dir={_sweep} goes on" if _sweep else ""
        print(f"\nstopped{how}", file=sys.stderr)
        sys.exit(jobs.INTERRUPTED)
    except Failed as error:
        # What a constructor refuses is the user's to change; anything else it raises is a bug.
        reason = error.__cause__
        unknown_key = isinstance(reason, TypeError) and "unexpected keyword" in str(reason)
        if not (unknown_key or isinstance(reason, UserError | ValueError)):
            raise
        sys.exit(_say(reason))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(_say(about_key(error) or error))
    except BrokenPipeError:
        if SHOWN.isdisjoint(sys.argv):
            raise
        # Nobody reads on, as after "--help | head"; what is left would be written when Python ends, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_say(f"cannot use {error.filename}: {error.strerror}"))
    except ValueError as error:
        # Hydra's own, of no class of its own.
        if str(error).startswith("Config group override"):
            sys.exit(_say("groups such as bits= take the name of an option (see --help), not a number or null"))
        if str(error).startswith("Only one of --run, --multirun"):
            sys.exit(_say(error))
        raise


def _say(error: object) -> int:
    # Hydra writes several lines: lists, a search path, its own types.
    text = re.split(r"\n(?:Config search path|\s*full_key):", str(error).strip())[0]
    for lines, joined in ((r":\n\s+", ": "), (r"\n\s+(?=\w)", ", "), (r"\.?\n+", "; ")):
        text = re.sub(lines, joined, text)
    print(f"error: {text}", file=sys.stderr)
    return USER


@contextmanager
def no_empty_folder() -> Iterator[None]:
    """Remove what Hydra has written of a run that is refused before it has written anything itself.

    A folder that was given by ``hydra.run.dir`` is the user's, and stays.
    """
    try:
        yield
    except Exception:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        given = any("hydra.run.dir=" in override for override in hydra.overrides.hydra)
        if not given and [entry.name for entry in folder.iterdir()] == [hydra.output_subdir]:
            shutil.rmtree(folder)
        raise


def launch(cfg: DictConfig, command: str) -> float | None:
    """Run one job: here, or in a process of its own when it belongs to a sweep.

    Returns:
        In a sweep: what :func:`quantsr.jobs.run_job` returns, for Hydra's sweepers.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if jobs.in_launcher():  # Hydra takes an exception from there to the process in charge.
            return jobs.run_job(cfg)
        with one_sentence():
            return jobs.run_job(cfg)
    from quantsr import run
    from quantsr.check import check_types

    # Inside Hydra too, which would put the whole command line above the sentence.
    with one_sentence(), no_empty_folder():
        refuse_added(HydraConfig.get())
        check_types(cfg)
        getattr(run, command)(cfg)
    return None


class SweepStart(Callback):
    """Hydra callback: what has to be right before the first job of a sweep starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _sweep
        with one_sentence():  # Hydra would make a warning of an exception.
            refuse_added(config.hydra)
            check_plugins(config)
            folder = Path(config.hydra.sweep.dir)
            refuse_another(config, folder / "multirun.yaml")
            folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")  # Not all sweepers do.
        share_processor(config)
        _sweep = folder


def check_plugins(config: DictConfig) -> None:
    """Refuse a launcher or sweeper that is not installed, and SLURM where there is none.

    Raises:
        UserError: what is missing.
    """
    for kind in ("launcher", "sweeper"):
        plugin, choice = config.hydra[kind]._target_, config.hydra.runtime.choices[f"hydra/{kind}"]
        package = ".".join(plugin.split(".")[:2])
        if package.startswith("hydra_plugins.") and (not find_spec("hydra_plugins") or not find_spec(package)):
            name = package.partition(".")[2].replace("_", "-")
            raise UserError(f"hydra/{kind}={choice} needs the package {name}: pip install 'quantsr[sweeps]'")
    if config.hydra.launcher._target_.endswith("SlurmLauncher") and not shutil.which("srun"):
        raise UserError(
            "hydra/launcher=submitit_slurm submits to SLURM, and there is no srun here: log in to the cluster, "
            "or take hydra/launcher=submitit_local"
        )


def refuse_another(config: DictConfig, record: Path) -> None:
    """Refuse to mix two sweeps in one folder.

    Args:
        config: of the sweep, with Hydra's part.
        record: ``multirun.yaml`` of the sweep that the folder is from; need not exist.

    Raises:
        UserError: that sweep had another command line.
    """
    if not record.is_file():
        return
    before = OmegaConf.load(record).hydra
    given = [
        [*hydra.overrides.task, *(f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items())]
        for hydra in (before, config.hydra)
    ]
    if given[0] != given[1]:
        raise UserError(
            f"{record.parent} holds the sweep {' '.join(given[0])}: give the same to go on with it, "
            "or a new hydra.sweep.dir=FOLDER"
        )


def share_processor(config: DictConfig) -> None:
    """Run so many jobs at once on this machine as the sweeper says, two by default, each on its share of the cores."""
    if not config.hydra.launcher._target_.endswith("LocalLauncher"):
        return
    sweeper = config.hydra.sweeper
    if "max_batch_size" in sweeper and sweeper.max_batch_size is None:
        with read_write(config):
            sweeper.max_batch_size = 2  # our choice; submitit itself would start all of them
    at_once = sweeper.get("max_batch_size") or sweeper.get("n_jobs") or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))


class SweepTable(Callback):
    """Hydra callback: one table over all jobs when a sweep ends, also as a page and files in the sweep's folder.

    Failed jobs are named, and the sweep then exits with an error.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from quantsr.callbacks.wandb import log_comparison
        from quantsr.report import comparison_images, print_report, read_jobs, write_report

        folder = Path(config.hydra.sweep.dir)
        with one_sentence():  # Hydra would make a warning of an exception.
            runs = read_jobs([folder])
            finished = [run for run in runs if run.metrics is not None]
            failed = [run for run in runs if run.metrics is None and (run.folder / "failed").is_file()]
            if finished:
                print_report(*write_report(runs, folder))
                if "wandb" in config.get("logger", {}):
                    comparison_images([folder], folder)
                    log_comparison(folder, folder.name, config.logger.wandb.project)
        print(f"sweep    {folder}")
        if failed:
            names = ", ".join(f"{run.folder.name} ({run.label})" for run in failed)
            sys.exit(_say(f"{len(failed)} of {len(failed) + len(finished)} jobs failed: {names}"))
