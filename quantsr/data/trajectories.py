"""Calibration pairs along the teacher's own sampling trajectories, computed once and kept on disk.

QuantVSR calibrates its denoiser on (inputs, teacher's epsilon) of the steps that the teacher takes when it restores
clips (arXiv 2508.04485; METHODS.md, section 5: 30 clips, 1800 pairs).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from quantsr.errors import UserError

FORMAT = 1
"""Of the files; another number is another folder."""


class Trajectories(Dataset):
    """Pairs in a folder that :func:`record` has filled.

    A number beyond the length is a later visit of pair ``number % len``. Pairs are in the order of the recording: the
    steps of the first clip, then those of the next. Where the clips have more steps than pairs are asked for, steps
    are left out evenly, so that all parts of a trajectory remain (our choice).

    Args:
        folder: with one file a clip.
        samples: number of pairs.
    """

    def __init__(self, folder: Path, samples: int):
        self.folder, self.samples = folder, samples
        self.steps = count_steps(clip_file(folder, 0))

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """The tensors of one step as the teacher gave them, without the batch axis. Only this step is read."""
        recorded = count_visits(self.samples, self.steps) * self.steps
        visit, step = divmod((number % len(self)) * recorded // len(self), self.steps)
        # Opened anew every time: that reads a header, and leaves nothing that worker processes could not share.
        with safe_open(clip_file(self.folder, visit), "pt") as file:
            return {key: file.get_slice(key)[step] for key in file.keys()}  # noqa: SIM118


def record(teacher: nn.Module, clips: Dataset, samples: int, root: str | Path, about: dict[str, Any]) -> Trajectories:
    """Run the teacher over clips and store what its denoiser takes and gives at every step, unless that is there.

    The folder is ``root`` / (hash of ``about`` and ``samples``). It holds ``about.json`` and a safetensors file for
    every visit of a clip, in the dtypes that the teacher gives. What is there and whole is used: a killed run is
    continued, and damaged files are made again. Chance is drawn from (hash, number of the visit), so a continued
    recording equals an undisturbed one, and the caller's random state stays as it is.

    Several processes may record at once, as the helpers of a run on several devices do: files appear whole, by a
    move, and all processes write the same, so that they only do some work twice.

    Before anything is written, one line says how much it will be.

    Args:
        teacher: has ``trajectory(lq)``, which takes ``(1, ...)`` and yields a dict of tensors ``(1, ...)`` for each
            of its sampling steps; equal keys and shapes at all steps, and equally many steps for all clips.
        clips: samples with ``lq``; ``clips[number]`` beyond the length is a later visit of sample ``number % len``.
        samples: number of pairs. For k steps a clip, ``samples / k`` clips are visited, rounded up.
        root: folder of all recordings; made if needed.
        about: what determines the result (teacher, data, seed), as JSON can write it.

    Raises:
        UserError: no clips, no pairs asked for, too little space on the disk, or a folder that cannot be made.
        ValueError: the number of steps differs between clips, or is 0.
    """
    if samples < 1 or len(clips) < 1:
        raise UserError(f"Recording trajectories needs pairs and clips, not {samples} pairs of {len(clips)} clips.")
    text = json.dumps({"format": FORMAT, "samples": samples, "about": about}, sort_keys=True, indent=2)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = Path(root).expanduser() / digest
    missing = find_missing(folder, samples)
    if missing:
        # A console of its own, as another may be showing a run's progress; helper processes are silent.
        console = Console(quiet=rank_zero_only.rank != 0)
        with Progress(console=console, transient=True) as progress:
            run = partial(run_teacher, teacher, clips, int(digest, 16))
            record_missing(run, folder, samples, text, missing[0], progress)
    return Trajectories(folder, samples)


def record_missing(
    run: Callable[[int], dict[str, Tensor]], folder: Path, samples: int, about: str, first: int, progress: Progress
) -> None:
    """Write all files that are missing; the visit ``first`` is, and shows how many steps there are and how large."""
    task = progress.add_task("recording trajectories", total=None)
    tensors = run(first)
    steps = len(next(iter(tensors.values())))
    visits = count_visits(samples, steps)
    missing = find_missing(folder, samples, steps)
    needed = len(missing) * sum(tensor.nbytes for tensor in tensors.values())
    there = f" ({visits - len(missing)} are there)" if len(missing) < visits else ""
    line = f"trajectories  {samples} pairs from {visits} clips{there}, about {needed / 1e6:.1f} MB in {folder}"
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    check_space(folder, needed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} for trajectories cannot be made ({error}): choose another.") from error
    write(folder / "about.json", lambda unfinished: unfinished.write_text(about))
    progress.update(task, total=visits, completed=visits - len(missing))
    for visit in missing:
        path = clip_file(folder, visit)
        if count_steps(path) != steps:  # Another process may have been faster.
            tensors = tensors if visit == first else run(visit)
            if len(next(iter(tensors.values()))) != steps:
                raise ValueError(f"clip {visit} has another number of steps than clip {first}, {steps}")
            write(path, partial(save_file, tensors))
        progress.advance(task)


def run_teacher(teacher: nn.Module, clips: Dataset, seed: int, visit: int) -> dict[str, Tensor]:
    """The teacher's steps on one clip, on the CPU: each tensor ``(steps, ...)``, without the batch axis."""
    device = next(teacher.parameters()).device
    accelerator = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.no_grad(), torch.random.fork_rng([device] if accelerator else [], **accelerator):
        torch.manual_seed(seed + visit)
        lq = clips[visit]["lq"][None].to(device)
        # Copied even on the CPU, as a sampler may go on in the same tensors.
        steps = [
            {key: x[0].detach().to("cpu", copy=True) for key, x in step.items()} for step in teacher.trajectory(lq)
        ]
    if not steps:
        raise ValueError("the teacher's trajectory has no steps")
    return {key: torch.stack([step[key] for step in steps]) for key in steps[0]}


def clip_file(folder: Path, visit: int) -> Path:
    """Where the steps of one visit are."""
    return folder / f"{visit:05d}.safetensors"


def count_visits(samples: int, steps: int) -> int:
    """How many clips of ``steps`` each give ``samples`` pairs."""
    return -(-samples // steps)


def count_steps(path: Path) -> int:
    """Steps in a file; 0 if it is not there or not whole."""
    try:
        with safe_open(path, "pt") as file:
            return min((file.get_slice(key).get_shape()[0] for key in file.keys()), default=0)  # noqa: SIM118
    except (OSError, SafetensorError):
        return 0


def find_missing(folder: Path, samples: int, steps: int = 0) -> list[int]:
    """Visits without a whole file of ``steps``, by default as many as the files have that are there."""
    steps = steps or max(map(count_steps, folder.glob("*.safetensors")), default=0)
    if not steps:
        return [0]
    return [visit for visit in range(count_visits(samples, steps)) if count_steps(clip_file(folder, visit)) != steps]


def check_space(folder: Path, needed: int) -> None:
    """Compare ``needed`` bytes with what is free on the disk of a folder, which may not exist yet.

    Raises:
        UserError: they do not fit.
    """
    disk = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise UserError(
            f"The trajectories take about {needed / 1e6:.1f} MB and {disk} has {free / 1e6:.1f} MB left: "
            "make room, choose another folder or ask for fewer pairs."
        )


def write(path: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name, unlike that of any other process, and move: there is never half a file."""
    unfinished = path.with_suffix(f".{uuid4().hex}.unfinished")
    try:
        save(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
