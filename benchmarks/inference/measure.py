"""One row, measured in this process; and what the processor could do at best."""

import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch
from networks import NETWORKS
from runtimes import RUNTIMES
from torch.utils.flop_counter import FlopCounterMode

from quantsr.deploy.openvino.core import core

GIB = 2**30
SHAPES = [(512, 512, 2048), (1024, 1024, 1024), (4096, 640, 640), (2048, 2048, 2048)]
"""Products (rows, in, out) of which the fastest is called the peak."""


@dataclass
class Row:
    """Of one network in one runtime.

    Attributes:
        network, runtime: by name.
        seconds: median of a run.
        gib: peak of resident memory since the process began.
        megabytes: of the files that it was loaded from; None where there are none.
        of_peak: operations of its products by the time, as a share of the int8 peak.
    """

    network: str
    runtime: str
    seconds: float
    gib: float
    megabytes: float | None
    of_peak: float


def prepare(network: str, runtime: str, threads: int, small: bool, models: Path) -> None:
    """Write what a runtime reads."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    RUNTIMES[runtime].prepare(NETWORKS[network], small, models)


def measure(network: str, runtime: str, rounds: int, threads: int, small: bool, models: Path, peak: float) -> Row:
    """A row."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    run, x, size = RUNTIMES[runtime].run(NETWORKS[network], small, models)
    seconds = []
    with torch.inference_mode():
        run(x)
        for _ in range(rounds):
            start = time.perf_counter()
            run(x)
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    status = Path("/proc/self/status").read_text()
    gib = int(status.split("VmHWM:")[1].split()[0]) * 1024 / GIB
    share = operations(network, small) / median / peak
    return Row(network, runtime, median, gib, None if size is None else size / 1e6, share)


def operations(network: str, small: bool) -> float:
    """Additions and multiplications of a network's products, counted on the meta device where it has no weights."""
    chosen = NETWORKS[network]
    model = chosen.architecture(small)
    x = chosen.input(model, small).to(next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        chosen.module(model)(x)
    return counter.get_total_flops()


def int8_peak(threads: int) -> float:
    """Operations a second of the fastest of some int8 products."""
    torch.set_num_threads(threads)
    return max(_speed(*shape, threads) for shape in SHAPES)


def _speed(rows: int, inputs: int, outputs: int, threads: int) -> float:
    x = op.parameter([rows, inputs], np.float32)
    ends = [op.constant(np.float32(value)) for value in (0, 255, 0, 255)]
    weight = np.random.default_rng(0).integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scaled = op.multiply(op.convert(op.constant(weight), np.float32), op.constant(np.float32(0.01)))
    y = op.matmul(op.fake_quantize(x, *ends, 256), scaled, False, True)
    options = {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    request = core().compile_model(ov.Model([y], [x]), "CPU", options).create_infer_request()
    values, best = np.random.default_rng(0).random((rows, inputs), np.float32), np.inf
    for _ in range(10):
        request.infer([values])
        taken = [
            i.real_time.total_seconds()
            for i in request.profiling_info
            if i.node_type.startswith(("FullyConnected", "MatMul"))
        ]
        best = min(best, sum(taken))
    return 2 * rows * inputs * outputs / best
