"""Latency, memory and size of inference on a CPU: full precision, a generic int8 tool, and quantsr's integers.

    python benchmarks/inference [--networks unet decoder32 decoder64 tiny_image tiny_video] [--runtimes ...] [--json F]

Stable Diffusion 2.1's UNet on 64x64 latents and its VAE decoder on 32x32 and 64x64, with random weights; the packaged
teacher of images from 128 to 512 pixels and that of clips, 5 frames from 64 to 256, everything around their networks
included. Runtimes:

    torch_fp32, torch_bf16         eager (bf16 of images in channels-last)
    compile_bf16                   torch.compile
    openvino_bf16                  OpenVINO, bf16 where the processor computes in it
    nncf_int8                      the same quantized by NNCF's "performance" preset (pip install nncf; else left out)
    minmax_w8a8, passionsr_w8a8, qartsr_w4a4, qartsr_w2a2    students of quantsr, through export.py's converter

Every row has a process of its own. Time is the median of --rounds runs after one that is not counted. Memory is the
peak of resident memory of loading and running (on Linux), Python included; models are written by another process.
"Of int8 peak" compares the operations of the network's products, by the time, with the fastest int8 product that
OpenVINO runs here. Students are calibrated on one random input. Weights are multiplied as int8 whatever they are
stored in: below 8 bits a processor saves memory, not time.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import Row, int8_peak, measure, prepare
from networks import NETWORKS
from runtimes import RUNTIMES, missing

HEAVY = ["quantsr.methods.qartsr", "quantsr.deploy.openvino"]
"""Modules that take long to import."""


def in_a_process(function, *args):
    """``function(*args)``, in a process of its own, forked off one that has done its imports and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| | | seconds | against torch fp32 | peak GiB | MB on disk | of int8 peak |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        base = next((r.seconds for r in rows if r.network == row.network and r.runtime == "torch_fp32"), None)
        gain = f"{base / row.seconds:.2f}x" if base else ""
        size = f"{row.megabytes:.1f}" if row.megabytes else ""
        share = f"{row.of_peak:.1%}" if row.of_peak else ""
        lines.append(
            f"| {row.network} | {row.runtime} | {row.seconds:.3f} | {gain} | {row.gib:.2f} | {size} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that the script works")
    parser.add_argument("--models", type=Path, help="keep converted students here, and take them from here")
    parser.add_argument("--json", type=Path, help="write the figures here too, after every row")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        models = args.models or Path(temporary)
        models.mkdir(parents=True, exist_ok=True)
        print(table(rows_of(args, models)))


def rows_of(args: argparse.Namespace, models: Path) -> list[Row]:
    """Measure everything, showing every row when it is there."""
    peak = in_a_process(int8_peak, args.threads)
    print(f"{args.threads} threads, int8 peak {peak / 1e12:.2f} TOPS", flush=True)
    rows = []
    for network in args.networks:
        for runtime in args.runtimes:
            if (reason := missing(runtime)) is not None:
                print(f"{network} {runtime}: {reason}", flush=True)
                continue
            if RUNTIMES[runtime].prepare is not None:
                in_a_process(prepare, network, runtime, args.threads, args.small, models)
            row = in_a_process(measure, network, runtime, args.rounds, args.threads, args.small, models, peak)
            rows.append(row)
            print(f"{network} {runtime}: {row.seconds:.3f} s, {row.gib:.2f} GiB", flush=True)
            if args.json:
                args.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
