"""How near exported students are to what they simulate, and to their teacher.

    python benchmarks/fidelity.py RUN_OR_SWEEP ... [--samples 8]

For every run of train.py: dB to the teacher (mean of PSNR over held-out samples of the run's own
data) of the simulated student in float32, of its OpenVINO form with float32 and with bf16 around the integers, and of
the teacher in OpenVINO's bf16, which no student in bf16 can be much nearer than; and the share of activation codes that
differ from the simulation's, over all layers, each given the simulation's own input: of all, and of those that are no
ties, values halfway between two codes, where the last bit of a float decides and neither code is the nearer one.
"""

import argparse
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from quantsr.deploy.openvino import load
from quantsr.deploy.openvino.exporting import models
from quantsr.deploy.openvino.layer import layer_input
from quantsr.deploy.openvino.networks import compile_model
from quantsr.deploy.openvino.student import with_networks
from quantsr.loading import load_models
from quantsr.metrics.fidelity import psnr
from quantsr.quant.folded import FoldedLayer
from quantsr.report.jobs import read_jobs
from quantsr.teachers.base import Teacher

COLUMNS = (
    "simulated",
    "integers, float32 around",
    "integers, bf16 around",
    "teacher in bf16",
    "codes that differ",
    "without ties",
)
TIE = 1e-4
"""Steps from halfway between two codes."""


def distance(model: Teacher, teacher: Teacher, samples: list[Tensor]) -> float:
    """Mean PSNR of two models' outputs over samples, in dB."""
    with torch.inference_mode():
        found = [psnr(*(m(lq[None]).clamp(0, 1) for m in (model, teacher))).mean() for lq in samples]
    return float(torch.stack(found).mean())


def codes_that_differ(student: Teacher, lq: Tensor) -> tuple[float, float]:
    """Shares of the activation codes of one sample that OpenVINO rounds another way than the simulation.

    Of all codes, and the same without ties.
    """
    inputs: dict[str, Tensor] = {}
    layers = {name: module for name, module in student.named_modules() if isinstance(module, FoldedLayer)}
    hooks = [
        layer.register_forward_hook(lambda _, args, y, name=name: inputs.update({name: args[0]}))
        for name, layer in layers.items()
    ]
    with torch.inference_mode():
        student(lq[None])
    for hook in hooks:
        hook.remove()
    differ = ties = total = 0
    for name, x in inputs.items():
        layer = layers[name]
        parameter = op.parameter(list(x.shape), np.float32)
        pieces = [piece.dequantized() for piece in layer_input(layer, parameter.output(0)).parts]
        compiled = compile_model(ov.Model(pieces, [parameter]), [x.shape], "f32")
        found = torch.cat([torch.from_numpy(y) for y in compiled(x.numpy()).values()], layer.operation.axis)
        with torch.inference_mode():
            for transform in (layer.smoothing, layer.rotation):
                x = x if transform is None else transform.input(x)
            expected, scale = layer.input_quantizer(x), layer.input_quantizer.qparams(x)[0]
        other = (found - expected).abs() > scale / 2
        steps = x / scale
        differ += int(other.sum())
        ties += int((other & ((steps - steps.floor() - 0.5).abs() < TIE)).sum())
        total += found.numel()
    return differ / total, (differ - ties) / total


def row(run: Path, count: int) -> str:
    """One line of the table."""
    student, teacher = load_models(run, None, None)
    data = instantiate(OmegaConf.load(run / "config.yaml").data)
    data.setup("fit")
    samples = [data.validation()[number]["lq"] for number in range(min(count, len(data.validation())))]
    exact, fast = (load(run, precision) for precision in ("f32", "auto"))
    bf16 = with_networks(load_models(run, None, None)[1], dict(models(teacher)), "auto")
    decibels = [distance(model, teacher, samples) for model in (student, exact, fast, bf16)]
    shares = codes_that_differ(student, samples[0])
    return " | ".join([*(f"{value:.2f}" for value in decibels), *(f"{share:.4%}" for share in shares)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs or sweeps")
    parser.add_argument("--samples", type=int, default=8, help="held-out samples (default 8)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and OpenVINO (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| | " + " | ".join(COLUMNS) + " |")
    print("|---" + "|--:" * len(COLUMNS) + "|")
    for job in read_jobs(args.runs):
        print(f"| {job.label} | {row(job.folder, args.samples)} |", flush=True)


if __name__ == "__main__":
    main()
