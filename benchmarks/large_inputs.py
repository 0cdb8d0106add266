"""Memory and time of an image teacher by the size of its output, in tiles and whole.

    python benchmarks/large_inputs.py [--teacher tiny_image] [--sizes 512 1024 1020x764 2048 4096] [--tile 256]

Every row is a process of its own, whose peak of resident memory (on Linux) is taken above what it held before, with the
model loaded and run once on a small image. Whole images are tried up to --whole pixels of width or height. "images" is
what the output itself takes, in float32.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from rich.table import Table

from quantsr.teachers.files import load_teacher
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.terminal import print_whole

MIB = 2**20
SMALL = 16


def resident() -> float:
    """MiB that this process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def measure(teacher: OneStepTeacher, height: int, width: int) -> dict[str, float]:
    """MiB above the loaded model, and seconds, of one output of that size."""
    generator = torch.Generator().manual_seed(0)
    lq = torch.rand(1, 3, height // teacher.scale, width // teacher.scale, generator=generator)
    with torch.inference_mode():
        teacher(torch.rand(1, 3, SMALL, SMALL, generator=generator))
        before, start = resident(), time.perf_counter()
        teacher(lq)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"memory": peak - before, "seconds": time.perf_counter() - start}


def in_a_process(args: argparse.Namespace, size: tuple[int, int], whole: bool) -> dict[str, float] | None:
    """What :func:`measure` finds in a process of its own; None if that was ended, as for want of memory."""
    options = ["--teacher", args.teacher, "--threads", str(args.threads), "--sizes", "x".join(map(str, size)), "--row"]
    options += ["--tile", str(args.tile)] if args.tile else []
    options += ["--whole", str(max(size))] if whole else ["--whole", "0"]
    run = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(run.stdout) if run.returncode == 0 else None


def size_of(text: str) -> tuple[int, int]:
    """``512`` or ``1020x764`` to (width, height)."""
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def cells(found: dict[str, float] | None) -> tuple[str, str]:
    return ("failed", "") if found is None else (f"{found['memory']:.0f}", f"{found['seconds']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", default="tiny_image", help="packaged name or file (default tiny_image)")
    sizes = [(512, 512), (1024, 1024), (1020, 764), (2048, 2048), (4096, 4096)]
    parser.add_argument("--sizes", nargs="+", type=size_of, default=sizes, help="of outputs: side, or WIDTHxHEIGHT")
    parser.add_argument("--tile", type=int, help="side of tiles in output pixels (default: the teacher's)")
    parser.add_argument("--whole", type=int, default=1024, help="largest side that is tried whole, too (default 1024)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher)
    if args.tile:
        teacher.tile = args.tile
    if args.row:
        ((width, height),) = args.sizes
        if args.whole:
            teacher.tile = -(-max(width, height) // teacher.size_multiple) * teacher.size_multiple
        print(json.dumps(measure(teacher, height, width)))
        return
    table = Table(box=None, pad_edge=False, title=f"{args.teacher}, tiles of {teacher.tile}")
    for title in ("output", "images\nMiB", "tiles\nMiB", "tiles\ns", "whole\nMiB", "whole\ns"):
        table.add_column(title, justify="right", no_wrap=True)
    for width, height in args.sizes:
        tiles = in_a_process(args, (width, height), whole=False)
        whole = in_a_process(args, (width, height), whole=True) if max(width, height) <= args.whole else None
        beside = cells(whole) if max(width, height) <= args.whole else ("", "")
        table.add_row(f"{width}x{height}", f"{12 * width * height / MIB:.0f}", *cells(tiles), *beside)
    print_whole(table)


if __name__ == "__main__":
    main()
