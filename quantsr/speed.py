"""How fast a student runs beside its teacher: ``python -m quantsr.speed RUN``."""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich import print as show
from rich.table import Table
from torch import Tensor

from quantsr.deploy.artefact import artefact_folder, read_config
from quantsr.deploy.pipeline import Pipeline
from quantsr.errors import UserError
from quantsr.launch import one_sentence
from quantsr.loading import teacher_of


def seconds(run: Callable[[Tensor], Tensor], lq: Tensor, rounds: int) -> float:
    """Median of a run, after one that is not counted."""
    run(lq)
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(lq)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _integers(runtime: str) -> str:
    """What of a student is multiplied as integers on this machine."""
    if runtime == "openvino":
        from quantsr.deploy.openvino.overflow import overflows

        if overflows():
            return "integers below 8 bits"
    return "integers"


def compare(folder: Path, side: int, rounds: int, runtime: str, device: str | None) -> Table:
    """Seconds and megabytes of teacher and student for an output of ``side`` pixels, of clips for one segment.

    A side that is no multiple of the scale is cut to one.

    Raises:
        UserError: no round or pixel, no artefact there, no file of its teacher, or a runtime that cannot be used.
    """
    if rounds < 1:
        raise UserError(f"--rounds takes a number of timed runs, 1 or more, not {rounds}")
    config, student = read_config(folder), Pipeline.load(folder, runtime, device)
    if side < student.scale:
        raise UserError(f"--size takes {student.scale} pixels or more, which one pixel becomes, not {side}")
    side -= side % student.scale
    teacher = Pipeline(teacher_of(config), student.device)
    shape = [1, *([student.frames] if student.frames > 1 else []), 3, *[side // student.scale] * 2]
    lq = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    sizes = config["bytes"]
    rows = [("teacher", teacher, sizes["fp32"]), ("student", student, sizes["artefact"])]
    title = "one output" if student.frames == 1 else f"{student.frames} frames"
    table = Table("", "runtime", box=None, pad_edge=False, title=f"{title} of {side}x{side} on {student.device}")
    for heading in ("seconds", "times as fast", "MB"):
        table.add_column(heading, justify="right")
    found = [seconds(lambda x, model=model: model(x, progress=False), lq, rounds) for _, model, _ in rows]
    for (name, model, size), taken in zip(rows, found, strict=True):
        simulated = ", simulated" if name == "student" else ""
        what = f"torch{simulated}" if model.runtime == "torch" else f"{model.runtime}, {_integers(model.runtime)}"
        table.add_row(name, what, f"{taken:.3f}", f"{found[0] / taken:.2f}", f"{size / 1e6:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m quantsr.speed", description=__doc__.split(":")[0])
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or an artefact folder")
    parser.add_argument("--size", type=int, default=512, help="side of the output in pixels (default 512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (default 5)")
    parser.add_argument("--runtime", default="auto", help="see docs/deploy.md (default: the fastest that is ready)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    args = parser.parse_args()
    with one_sentence():
        show(compare(artefact_folder(args.run), args.size, args.rounds, args.runtime, args.device))


if __name__ == "__main__":
    main()
