"""Time and memory of a calibration step against a full-precision step of the same model with frozen weights.

    python benchmarks/calibration [--method passionsr|quantvsr] [--bits 6] [--rounds 5] [--json FILE]

PassionSR trains transforms, then bounds. QuantVSR (layers only, rank 16) trains the low-rank branches, then a bias per
layer; its branches are moved a little from where they were calibrated, as training does, so that some weights are
clamped. "Plain" is the same computation written out in eager torch: for QuantVSR what the authors' layer does, with a
dense L1 L2 in a second full product, dense rotations of input and weight in every step, and a check of the weight.

The model is a UNet of Stable Diffusion 2.1's shape at 0.3 of its width (78 million parameters), with random weights.
A step is the forward pass of one latent, MSE to a random target, and the backward pass down to that latent. The step of
the optimizer is left out: it moves less than a percent of the parameters.

Times are medians over rounds in which every case has its turn. Memory is the peak of resident memory (on Linux), each
case in a process of its own, forked before anything is built: in one process the peak never comes down again.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import Bench
from cases import CASES, Case

MIB = 2**20


@dataclass
class Measurement:
    """Of one case.

    Attributes:
        name: of the case.
        seconds: median time of a step.
        peak_mib: highest resident memory of its process.
        step_mib: the part of it that the step added to the model, calibrated and at rest.
    """

    name: str
    seconds: float
    peak_mib: float
    step_mib: float


def times(args: argparse.Namespace) -> list[float]:
    """Median seconds of a step, for every case."""
    bench = Bench(args)
    steps = [bench.step(case) for case in CASES[args.method]]
    found: list[list[float]] = [[] for _ in steps]
    for step in steps:  # A warm-up: allocator, threads, and weights that are cached while nothing trains.
        step()
    for _ in range(args.rounds):
        for step, seconds in zip(steps, found, strict=True):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in found]


def memory(args: argparse.Namespace, case: Case) -> tuple[float, float]:
    """(peak, what steps add to the model at rest) in MiB, over two steps of a case in a fresh process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_memory, args=(args, case, sender))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def _memory(args: argparse.Namespace, case: Case, sender) -> None:
    step = Bench(args).step(case)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE") / MIB
    for _ in range(2):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    sender.send((peak, peak - before))


def table(rows: list[Measurement]) -> str:
    """Markdown, with ratios to the first row."""
    lines = ["| step | time (s) | | peak (MiB) | | of it the step (MiB) | |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        cells = [row.name]
        for figure, digits in (("seconds", 2), ("peak_mib", 0), ("step_mib", 0)):
            value, first = getattr(row, figure), getattr(rows[0], figure)
            cells += [f"{value:.{digits}f}", f"{value / first:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", choices=CASES, default="passionsr", help="whose steps (default passionsr)")
    parser.add_argument("--bits", type=int, help="of weights and activations (default 6; 4 for quantvsr)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of every case (default 5)")
    parser.add_argument("--size", type=int, help="latent height and width (default 64; 16 with --small)")
    parser.add_argument("--small", action="store_true", help="a tiny UNet, to see that the script works")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    args.bits = args.bits or (6 if args.method == "passionsr" else 4)
    args.size = args.size or (16 if args.small else 64)

    memories = [
        memory(args, case) for case in CASES[args.method]
    ]  # First: this process must still be small and without threads.
    rows = [
        Measurement(case.name, seconds, *found)
        for case, seconds, found in zip(CASES[args.method], times(args), memories, strict=True)
    ]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
