"""Time and memory of calibration and inference at full size, with random weights: no file is needed.

    python benchmarks/full_size [--method passionsr|qartsr] [--dtype bfloat16|float32] [--output 512] [--json FILE]
    python benchmarks/full_size --teacher mgldvsr

OSEDiff's shape (Stable Diffusion 2.1, 866 million parameters in the UNet), batches of one image. A method's rows are a
step of each of its stages, of QArtSR's modules the first stage (the last module trains) and the last stage (all of
them do); then its student runs, its quantization simulated. Each set of options has a process of its own:

    gradient checkpointing   gradient_checkpointing=true of train.py
    weights of their own     what a teacher and a student cost that do not share theirs (in quantsr they always do)

MGLD-VSR's shape runs alone, one of its 50 sampling steps with the video autoencoder around it.
Memory is the peak of the GPU's, or without one of the resident memory of the process, Python included (on Linux).
"""

import argparse
import json
import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path

import torch
from cases import BITS, METHODS, Case
from measure import Row, measure


def cases(args: argparse.Namespace) -> list[Case]:
    """One process each."""
    bits = args.bits or BITS.get(args.method, 8)
    about = {"dtype": args.dtype, "side": args.output // 4, "steps": args.steps, "small": args.small}
    alone = Case(args.teacher, **about)
    if args.method is None:
        return [alone]
    plain = replace(alone, method=args.method, bits=bits)
    return [alone, plain, replace(plain, gradient_checkpointing=True), replace(plain, shared=False)]


def run(case: Case, threads: int) -> list[Row]:
    """Measure a case in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case, threads))


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| | options | seconds | peak GiB |", "|---|---|--:|--:|"]
    lines += [f"| {row.what} | {row.options} | {row.seconds:.2f} | {row.gib:.2f} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", choices=["osediff", "mgldvsr"], default="osediff", help="default osediff")
    parser.add_argument("--method", choices=METHODS, help="whose calibration (default: only the teacher runs)")
    parser.add_argument("--bits", type=int, help="of weights and activations (default 8; 4 for qartsr)")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default bfloat16")
    parser.add_argument("--output", type=int, default=512, help="side of the output in pixels (default 512)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a stage, after a first (default 2)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that the script works")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.method and args.teacher != "osediff":
        parser.error("calibration is measured on the osediff teacher")

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {args.threads} threads"
    print(f"{args.teacher}, {args.dtype}, {device}", flush=True)
    rows = [row for case in cases(args) for row in run(case, args.threads)]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
