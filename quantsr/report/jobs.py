"""Run folders as jobs: what each was asked to do, what it measured, or why it has no figures."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quantsr.errors import UserError

DEPTH = 3  # of run folders below a given one: runs/DATE/TIME_sweep/N_NAME
MARKS = ("metrics.json", "failed", "config.yaml", ".hydra")  # One of them makes a folder a run folder.
SKIPPED = (".", "wandb")  # W&B has a config.yaml of its own in its folders.
NAMED = ("method", "teacher", "data", "seed")  # Read from the configuration: a default counts as much as an override.
IRRELEVANT = ("bits", "logger", "name", "run_dir", "cache_dir", "ckpt_path", "checkpoint_every")
MEASURED = ("artefact", "outputs")  # What a run of eval.py measures.
FEEDING = ("data.seed", "data.batch_size", "data.calibration.")  # They change the result, not what is measured on.


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        folder: its run folder.
        method, bits, teacher, data: what it ran, as on the command line (``qartsr``, ``w4a4``, ``tiny_image``,
            ``photos``); bits are empty where nothing is quantized. Where jobs differ in the teacher's or the data's
            options, these follow in brackets.
        seed: of everything that is drawn at random.
        differs: its other overrides that not all jobs have alike, by key; of a teacher also the bits it was chosen by.
        metrics: what ``metrics.json`` holds; None for a job without figures.
        problem: why it has none, in words.
    """

    folder: Path
    method: str
    bits: str = ""
    teacher: str = ""
    data: str = ""
    seed: str = ""
    differs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def label(self) -> str:
        """``minmax w4a4 method.rank=8 seed=1``: the job among all others."""
        others = [f"{key}={value}" for key, value in self.differs.items()]
        return " ".join(filter(None, [self.method, self.bits, *others, f"seed={self.seed}" if self.seed else ""]))

    @property
    def own(self) -> dict[str, float]:
        """The figures of the model that the run is about: the student, the teacher it trained, ready-made outputs."""
        values = self.metrics or {}
        return next((values[name] for name in ("student", "outputs", "teacher") if name in values), {})


def read_jobs(paths: Sequence[Path]) -> list[Job]:
    """The jobs at or below some folders, in the order given and inside of one by name; those without figures too.

    Raises:
        UserError: a folder does not exist, or holds no run.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(f"no folder at {path}: give run folders, sweeps or folders of these, for example runs/DATE")
        found = list(_run_folders(path, DEPTH))
        if not found:
            raise UserError(f"no runs in {path}: a run's folder holds metrics.json and config.yaml")
        folders += found
    unique = {folder.resolve(): folder for folder in folders}
    return _labelled([_read(folder) for folder in unique.values()])


def _run_folders(path: Path, depth: int) -> Iterable[Path]:
    if any((path / mark).exists() for mark in MARKS):
        yield path
    elif depth > 0:
        below = (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(SKIPPED))
        for folder in sorted(below, key=_natural):
            yield from _run_folders(folder, depth - 1)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10_b behind 9_a."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", path.name) if piece]


def _read(folder: Path) -> tuple[Job, dict[str, str]]:
    """A job by itself, and all its overrides by key."""
    problem = None
    try:
        metrics, problem = _metrics(folder)
    except (OSError, ValueError) as error:
        metrics, problem = None, f"metrics.json is unreadable ({_first_line(error)})"
    try:
        config, choices, overrides = _configuration(folder)
        method, bits, seed = _method(config, choices, folder)
        teacher = choices.get("teacher") or _name(config.get("teacher"), "weights")
        data = choices.get("data") or _name(config.get("data"), "_target_")
    except Exception as error:  # Whatever a damaged file makes the parsers raise: the other runs still count.
        return Job(folder, folder.name, problem=f"its configuration is unreadable ({_first_line(error)})"), {}
    differs = {}
    if bits and metrics is not None and "student" not in metrics:
        # Widths that a teacher was chosen by (TRQ): its figures are in full precision.
        bits, differs = "", {"bits": bits}
    return Job(folder, method, bits, teacher, data, seed, differs, metrics, problem), overrides


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _metrics(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What was measured, or why there is nothing."""
    file = folder / "metrics.json"
    if file.is_file():
        metrics = json.loads(file.read_text())
        own = Job(folder, "", metrics=metrics).own if isinstance(metrics, dict) else {}
        # Without ground truth a student is compared with its teacher alone.
        empty = not own and "fidelity_psnr" not in (metrics if isinstance(metrics, dict) else {})
        if empty or not isinstance(own, dict) or not all(isinstance(value, int | float) for value in own.values()):
            raise ValueError("it holds no figures of a model")
        return metrics, None
    if (folder / "failed").is_file():
        return None, f"failed ({(folder / 'failed').read_text().strip() or 'no reason given'})"
    return None, "not finished"


def _configuration(folder: Path) -> tuple[DictConfig, dict[str, str], dict[str, str]]:
    """The configuration, the options chosen from its groups, and the overrides by key."""
    hydra = folder / ".hydra"
    file = next((file for file in (folder / "config.yaml", hydra / "config.yaml") if file.is_file()), None)
    about, overrides = hydra / "hydra.yaml", hydra / "overrides.yaml"  # Hydra can be told not to write them.
    config = OmegaConf.load(file) if file else OmegaConf.create()
    choices = OmegaConf.select(OmegaConf.load(about), "hydra.runtime.choices") if about.is_file() else None
    given = OmegaConf.load(overrides) if overrides.is_file() else ()
    # How a key was added (+key, ++key) says nothing about the job.
    pairs = (str(override).lstrip("+").partition("=") for override in given)
    return (
        config,
        {key: value for key, value in (choices or {}).items() if value},
        {key: value for key, _, value in pairs},
    )


def _method(config: DictConfig, choices: dict[str, str], folder: Path) -> tuple[str, str, str]:
    """The method's name, its bits and its seed; a run of ``eval.py`` has those of what it measured."""
    seed = config.get("seed", "")
    if config.get("outputs"):
        return Path(config["outputs"]).name, "", str(seed)
    if config.get("artefact"):
        artefact = Path(config["artefact"]).expanduser()
        file = next((f for f in (artefact / "config.json", artefact / "artefact" / "config.json") if f.is_file()), None)
        about = json.loads(file.read_text()) if file else {}
        seed = about.get("config", {}).get("seed", seed)
        return str(about.get("method", artefact.name)).lower(), about.get("bits", ""), str(seed)
    method = config.get("method") or {}
    bits = method.get("bits") or {}
    name = choices.get("method") or _name(method, "_target_").lower() or folder.name
    return name, f"w{bits['weight']}a{bits['act']}" if bits else "", str(seed)


def _name(group: Any, key: str) -> str:
    """A group of the configuration by one of its values; of a class the last part."""
    value = str((group or {}).get(key) or "")
    return Path(value).name if "/" in value else value.rpartition(".")[2]


def _labelled(read: list[tuple[Job, dict[str, str]]]) -> list[Job]:
    """The jobs, with what sets them apart from the others."""
    given = [overrides for _, overrides in read]
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    differing = [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]
    differing = [key for key in differing if key not in NAMED and not key.startswith("hydra.")]
    differing = [key for key in differing if not key.endswith(".num_workers")]
    differing = [key for key in differing if key.partition(".")[0].partition("@")[0] not in IRRELEVANT]
    alike = Counter((job.method, job.bits, job.seed, job.data) for job, _ in read)
    jobs = []
    for job, overrides in read:
        own = {key: overrides[key] for key in differing if key in overrides}
        if alike[job.method, job.bits, job.seed, job.data] == 1:  # Then the method says which artefact it is.
            own = {key: value for key, value in own.items() if key not in MEASURED}
        groups = {}
        for group in ("teacher", "data"):
            of_group = [key for key in own if key.startswith(f"{group}.") and not key.startswith(FEEDING)]
            options = [f"{key.partition('.')[2]}={own.pop(key)}" for key in of_group]
            groups[group] = " ".join([getattr(job, group), *([f"({', '.join(options)})"] if options else [])])
        jobs.append(Job(**{**vars(job), **groups, "differs": job.differs | own}))
    return jobs
