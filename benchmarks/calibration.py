"""Time and memory of a calibration step against a full-precision step of the same model with frozen weights.

    python benchmarks/calibration.py [--method passionsr|quantvsr] [--bits 6] [--rounds 5] [--json FILE]

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
import copy
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from quantsr.quant.affine import round_through
from quantsr.quant.attention import PairScale
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import LowRank
from quantsr.quant.prepare import prepare
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule
from quantsr.quant.spec import AffineSpec
from quantsr.quant.transforms import Rotation, Smoothing, along

MIB = 2**20
SMOOTHING, BOUNDS = (Smoothing, PairScale), (Quantizer,)
TOKENS = 77


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is measured.
        model: ``full precision``, ``layers``, ``layers and attention`` or ``plain``.
        trains: modules whose own parameters train; of a quantized layer this is its bias alignment.
    """

    name: str
    model: str
    trains: tuple[type[nn.Module], ...] = ()


FROZEN = Case("full precision, frozen weights", "full precision")
PASSIONSR = (
    FROZEN,
    Case("full precision, weights train", "full precision", (nn.Linear, nn.Conv2d)),
    Case("plain eager, smoothing stage, layers", "plain", SMOOTHING),
    Case("plain eager, bounds stage, layers", "plain", BOUNDS),
    Case("quantsr, nothing trains, layers", "layers"),
    Case("quantsr, smoothing stage, layers", "layers", SMOOTHING),
    Case("quantsr, bounds stage, layers", "layers", BOUNDS),
    Case("quantsr, nothing trains, layers and attention", "layers and attention"),
    Case("quantsr, smoothing stage, layers and attention", "layers and attention", SMOOTHING),
    Case("quantsr, bounds stage, layers and attention", "layers and attention", BOUNDS),
)
QUANTVSR = (
    FROZEN,
    Case("plain eager, refinement stage, layers", "plain", (LowRank,)),
    Case("plain eager, bias alignment stage, layers", "plain", (QuantizedLayer,)),
    Case("quantsr, nothing trains, layers", "layers"),
    Case("quantsr, refinement stage, layers", "layers", (LowRank,)),
    Case("quantsr, bias alignment stage, layers", "layers", (QuantizedLayer,)),
)
CASES = {"passionsr": PASSIONSR, "quantvsr": QUANTVSR}
RANK = 16
DRIFT = 0.02
"""How far QuantVSR's branches are from their start, relative to their size."""


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


class PlainLayer(nn.Module):
    """What a calibrated layer computes, written out in differentiable operations.

    Each of them keeps its tensors for the backward pass, and nothing is kept between steps.

    Args:
        layer: with smoothing, offset and learned bounds.
    """

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, operation, smoothing = self.layer, self.layer.operation, self.layer.smoothing
        shifted = x - along(smoothing.offset, operation.axis, x.ndim)
        x_hat = _plain(layer.input_quantizer, shifted / along(smoothing.scale, operation.axis, x.ndim))
        weight = layer.weight * along(smoothing.scale, 1, layer.weight.ndim)
        y = operation(x_hat, _plain(layer.weight_quantizer, weight), layer.bias)
        response = (layer.weight * along(smoothing.offset, 1, layer.weight.ndim)).sum(1, keepdim=True)
        if operation.kind == "Linear":
            return y + response[:, 0]
        return y + operation(x.new_ones(1, 1, *x.shape[2:]), response)


class PlainDualBranch(nn.Module):
    """What the authors' QuantVSR layer computes, written out as they do it.

    Args:
        layer: with rotation, low-rank branch, channel split and bias alignment.
    """

    def __init__(self, layer: QuantizedLayer):
        super().__init__()
        self.layer, sizes = layer, layer.input_quantizer.sizes
        rotation = Rotation(sizes, 1)
        rotation.load_state_dict(layer.rotation.state_dict())
        rows, starts = rotation.input(torch.eye(sum(sizes))).split(sizes), accumulate(sizes, initial=0)
        self.matrices = [row[:, start : start + len(row)].clone() for row, start in zip(rows, starts, strict=False)]

    def forward(self, x: Tensor) -> Tensor:
        layer, operation = self.layer, self.layer.operation
        assert layer.weight.allclose(layer.weight)
        skip = (layer.low_rank.L1 @ layer.low_rank.L2).view_as(layer.weight)
        x_hat = _plain(layer.input_quantizer, self._rotated(x, operation.axis))
        w_hat = _plain(layer.weight_quantizer, self._rotated(layer.weight - skip, 1))
        y = operation(x_hat, w_hat, layer.bias) + operation(x, skip)
        return y + along(layer.bias_alignment, operation.axis, y.ndim)

    def _rotated(self, x: Tensor, axis: int) -> Tensor:
        pieces = zip(x.split(self.layer.input_quantizer.sizes, axis), self.matrices, strict=True)
        equation = "b c ..., c j -> b j ..." if axis == 1 else "... c, c j -> ... j"
        return torch.cat([torch.einsum(equation, piece, matrix) for piece, matrix in pieces], axis)


def _plain(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Fake quantization of every part with its own bounds."""
    spec, pieces = quantizer.spec, []
    for part, piece in enumerate(x.split(quantizer.sizes, quantizer.axis)):
        if spec.range == "dynamic":
            lower, upper = piece.detach().min(), piece.detach().max()
        else:
            lower, upper = (along(bound[..., part], 0, x.ndim) for bound in (quantizer.lower, quantizer.upper))
        scale = (upper - lower) / (spec.qmax - spec.qmin)
        zero_point = round_through(-lower / scale)
        codes = (round_through(piece / scale) + zero_point).clamp(spec.qmin, spec.qmax)
        pieces.append((codes - zero_point) * scale)
    return torch.cat(pieces, quantizer.axis)


def unet(small: bool) -> UNet2DConditionModel:
    """Stable Diffusion 2.1's UNet, narrower; with ``small``, just enough of one to see that the script works."""
    shape = {"block_out_channels": (96, 192, 384, 384), "attention_head_dim": (2, 4, 8, 8), "cross_attention_dim": 320}
    if small:
        shape = {
            "block_out_channels": (32, 64),
            "attention_head_dim": 2,  # In diffusers' configurations this is the number of heads.
            "cross_attention_dim": 32,
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    torch.manual_seed(0)
    return UNet2DConditionModel(**shape, use_linear_projection=True).eval().requires_grad_(False)


def passionsr(width: int) -> LayerRecipe:
    """Learned bounds, smoothing with offset, channel split."""
    return LayerRecipe(
        weight=AffineSpec(width, granularity="channel", range="learned"),
        act=AffineSpec(width, range="learned"),
        smoothing=0.3,
        offset=True,
        channel_split=True,
    )


def quantvsr(width: int) -> LayerRecipe:
    """Dynamic ranges of inputs, rotation, low-rank branch, channel split, bias alignment."""
    return LayerRecipe(
        weight=AffineSpec(width, granularity="channel"),
        act=AffineSpec(width, range="dynamic"),
        rotation=True,
        rank=RANK,
        channel_split=True,
        bias_alignment=True,
    )


def rules(recipe: Callable[[int], LayerRecipe], bits: int, attention: bool) -> list[Rule]:
    """A method's layers, and PassionSR's attention; first and last layer at 8 bits at least."""
    exceptions = [Rule(name, recipe(max(bits, 8))) for name in ("*time_embedding.linear_1", "conv_out")]
    products = [Rule("*", AttentionRecipe(AffineSpec(bits, range="learned"), smoothing=0.3))] if attention else []
    return [*exceptions, Rule("*", recipe(bits)), *products]


class Bench:
    """Models and inputs of all cases; every model shares the weights of the full-precision one.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        self.bits, self.method = args.bits, args.method
        self.models: dict[str, nn.Module] = {"full precision": unet(args.small)}
        config = self.models["full precision"].config
        self.latent = torch.randn(1, config.in_channels, args.size, args.size)
        self.prompt = torch.randn(1, TOKENS, config.cross_attention_dim)
        self.target = torch.randn_like(self.latent)

    def model(self, name: str) -> nn.Module:
        """The model ``name``, built and calibrated when first asked for."""
        if name not in self.models:
            self.models[name] = self._plain() if name == "plain" else self._quantized(attention="attention" in name)
        return self.models[name]

    def _quantized(self, attention: bool) -> nn.Module:
        model = _sharing_copy(self.models["full precision"])
        prepare(model, rules(passionsr if self.method == "passionsr" else quantvsr, self.bits, attention))
        for observation in ("observe_smoothing", "observe_ranges"):
            with torch.no_grad(), mode(model, observation):
                self.output(model, self.latent)
            settle(model)
        with torch.no_grad():
            for parameter in _own_parameters(model, (LowRank,)):
                parameter.addcmul_(parameter, torch.randn_like(parameter), value=DRIFT)
        return model

    def _plain(self) -> nn.Module:
        model = _sharing_copy(self.model("layers"))
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLayer):
                model.set_submodule(name, (PlainLayer if self.method == "passionsr" else PlainDualBranch)(module))
        return model

    def output(self, model: nn.Module, latent: Tensor) -> Tensor:
        """The model's prediction, ``(1, c, h, w)``."""
        return model(latent, 999, self.prompt).sample

    def step(self, case: Case) -> Callable[[], None]:
        """One step of the case, ready to run."""
        model = self.model(case.model)

        def run() -> None:
            model.requires_grad_(False)
            for parameter in _own_parameters(model, case.trains):
                parameter.requires_grad_(True)
            latent = self.latent.clone().requires_grad_()
            F.mse_loss(self.output(model, latent), self.target).backward()
            model.zero_grad()

        return run


def _own_parameters(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Parameter]:
    found = []
    for module in model.modules():
        if isinstance(module, kinds):
            layer = isinstance(module, QuantizedLayer)
            found += [module.bias_alignment] if layer else list(module.parameters(recurse=False))
    return found


def _sharing_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


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
