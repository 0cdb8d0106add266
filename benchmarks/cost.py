"""What the full-size students store and compute, against their teachers, beside what papers report.

    python benchmarks/cost.py [--teacher osediff|mgldvsr] [--method NAME] [--bits 8 6 4 2] [--rank 44]

OSEDiff is counted for one image of 128 x 128, MGLD-VSR for one segment of 5 frames of 128 x 128 and 50 steps, both
upscaled to 512 x 512. Students are built by their methods on the meta device: there are no weights, and nothing is
calibrated. That is why QuantVSR, whose ranks (16 to 64) come from data, has one rank here for all layers. Each method
quantizes the parts that it does by default; "UNet" is the denoiser alone, of which the papers speak.

Shares are counted as the papers do, see :mod:`quantsr.metrics.cost`; megabytes hold everything that is stored, and
BOPs the products of attention too.
"""

import argparse

import torch
from rich.table import Table

from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.quarot import QuaRot
from quantsr.methods.svdquant import SVDQuant
from quantsr.metrics.cost import Cost, cost
from quantsr.quant.spec import Bits
from quantsr.teachers import osediff
from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr import checkpoints
from quantsr.terminal import print_whole

SIDE = 128
METHODS: dict[str, type[QuantizationMethod]] = {
    "minmax": MinMax,
    "passionsr": PassionSR,
    "qartsr": QArtSR,
    "svdquant": SVDQuant,
    "quarot": QuaRot,
    "quantvsr": QuantVSR,
}
TEACHERS = {"osediff": osediff.architecture, "mgldvsr": checkpoints.architecture}
OF_TEACHER = {
    "osediff": ["minmax", "passionsr", "qartsr", "svdquant"],
    "mgldvsr": ["minmax", "quarot", "svdquant", "quantvsr"],
}
REPORTED = {("mgldvsr", "quantvsr", "w4a4"): ("84.39", "82.56")}
"""Shares of parameters and operations that are saved, in percent, from the papers."""


def student_cost(teacher: Teacher, method: str, bits: Bits, rank: int) -> Cost:
    """Cost of a method's student for one input."""
    options = {"smallest_rank": rank, "largest_rank": rank} if method == "quantvsr" else {}
    student = METHODS[method](teacher, bits, **options).student
    frames = (teacher.frames,) if teacher.frames > 1 else ()
    return cost(student, teacher, (1, *frames, 3, SIDE, SIDE))


def row(found: Cost, reported: tuple[str, str]) -> list[str]:
    """The figures of a student, as they are printed."""
    shares = (found.parameters_saved, found.operations_saved)
    own, everything = ([f"{100 * share(part):.2f}" for share in shares] for part in ("denoiser", None))
    return [*own, *reported, *everything, f"{found.bits() / 8e6:.0f}", f"{found.bops() / 1e12:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", choices=OF_TEACHER, help="one of them (default: both)")
    parser.add_argument("--method", choices=METHODS, help="one of them (default: all that fit the teacher)")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 2], help="widths (default 8 6 4 2)")
    parser.add_argument("--rank", type=int, default=44, help="of QuantVSR's branches (default 44)")
    args = parser.parse_args()
    for name in [args.teacher] if args.teacher else OF_TEACHER:
        with torch.device("meta"):
            teacher = TEACHERS[name]().freeze()
        table = Table(box=None, pad_edge=False, title=f"{name}: percent saved, and what is left")
        table.add_column("method", no_wrap=True)
        table.add_column("bits", no_wrap=True)
        for title in ("UNet\nparam.", "UNet\noper.", "paper\nparam.", "paper\noper.", "all\nparam.", "all\noper."):
            table.add_column(title, justify="right", no_wrap=True)
        for title in ("MB", "TBOPs"):
            table.add_column(title, justify="right", no_wrap=True)
        found = None
        for method in [args.method] if args.method else OF_TEACHER[name]:
            for width in args.bits:
                found, bits = student_cost(teacher, method, Bits(width, width), args.rank), f"w{width}a{width}"
                table.add_row(method, bits, *row(found, REPORTED.get((name, method, bits), ("", ""))))
        if found is not None:
            figures = found.to_dict()
            size, bops = f"{figures['teacher_megabytes']:.0f}", f"{figures['teacher_gbops'] / 1e3:.0f}"
            table.add_row("teacher", *[""] * 7, size, bops)
        print_whole(table)


if __name__ == "__main__":
    main()
