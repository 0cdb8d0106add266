"""Time and memory of calibration and inference at full size, with random weights: no file is needed.

    python benchmarks/full_size [--method passionsr|qartsr] [--dtype bfloat16|float32] [--output 512] [--json FILE]
    python benchmarks/full_size --method passionsr --cases plain checkpointing
    python benchmarks/full_size --teacher mgldvsr

OSEDiff's shape (Stable Diffusion 2.1, 866 million parameters in the UNet), batches of one image. A method's rows are a
step of each of its stages, of QArtSR's modules the first stage (the last module trains) and the last stage (all of
them do); then its student runs, its quantization simulated. Each case has a process of its own:

    teacher         the full-precision model runs
    plain           calibration and inference, no options
    checkpointing   gradient_checkpointing=true of train.py
    offload         offload=true of train.py: weights of parts that do not run wait in host memory, on a CPU on disk
    unshared        what a teacher and a student cost that do not share their weights (in quantsr they always do)

What is measured is shown at once (on standard error), all of it as a table in the end; ``--json`` has what the cases
that are over found, also of a run that was stopped.

MGLD-VSR's shape runs alone, one of its 50 sampling steps with the video autoencoder around it.
Memory is the peak of the GPU's, or without one of the resident memory of the process, Python included (on Linux).
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cases import BITS, METHODS, Case
from measure import Row, measure

HEAVY = ["quantsr.methods.qartsr", "quantsr.teachers.files"]
"""Modules that take long to import."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "offload": {"offload": True},
    "unshared": {"shared": False},
}
"""The cases of a method: fields of :class:`Case`."""


def cases(args: argparse.Namespace) -> list[Case]:
    """One process each."""
    about = {"dtype": args.dtype, "side": args.output // 4, "steps": args.steps, "small": args.small}
    alone = Case(args.teacher, **about)
    if args.method is None:
        return [alone]
    plain = replace(alone, method=args.method, bits=args.bits or BITS[args.method])
    return [alone if name == "teacher" else replace(plain, **CASES[name]) for name in args.cases]


def run(case: Case, threads: int) -> list[Row]:
    """Measure a case in a process of its own, forked off one that has imported what takes long and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, case, threads).result()


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| | options | seconds | peak GiB |", "|---|---|--:|--:|"]
    lines += [f"| {row.what} | {row.options} | {row.seconds:.2f} | {row.gib:.2f} |" for row in rows]
    return "\n".join(lines)


def write(rows: list[Row], path: Path) -> None:
    """As JSON, under a temporary name first: a run that is stopped leaves no half file."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", choices=["osediff", "mgldvsr"], default="osediff", help="default osediff")
    parser.add_argument("--method", choices=METHODS, help="whose calibration (default: only the teacher runs)")
    every = ["teacher", *CASES]
    parser.add_argument("--cases", nargs="+", choices=every, default=every, help="with a method (default: all)")
    parser.add_argument("--bits", type=int, help="of weights and activations (default 8; 4 for qartsr)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--output", type=int, default=512, help="side of the output in pixels (default 512)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a stage (default 2)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that the script works")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.method and args.teacher != "osediff":
        parser.error("calibration is measured on the osediff teacher")

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {args.threads} threads"
    print(f"{args.teacher}, {args.dtype}, {device}", flush=True)
    rows = []
    for case in cases(args):
        rows += run(case, args.threads)
        if args.json:
            write(rows, args.json)
    print(table(rows))


if __name__ == "__main__":
    main()
