"""How a network is run: each runtime makes a function of one tensor, and says how large its weights are on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from networks import Network
from torch import Tensor

from quantsr.deploy.openvino import networks
from quantsr.deploy.openvino.convert import convert
from quantsr.deploy.openvino.core import core
from quantsr.deploy.openvino.networks import CompiledNetwork
from quantsr.deploy.openvino.packed import shorten
from quantsr.deploy.openvino.student import with_networks
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.quantization import QuantizationMethod
from quantsr.quant.calibrate import mode, settle
from quantsr.quant.folded import fold
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher

Runnable = tuple[Callable[[Tensor], Tensor], Tensor, int | None]
"""What runs, its input, and bytes on disk where there is a file."""
SIDE = 16
"""Latent pixels of what students are calibrated on and networks converted with."""


def in_torch(network: Network, small: bool, dtype: str, compiled: bool = False) -> Runnable:
    """Eager or compiled."""
    model = network.teacher(dtype, small)
    x = network.input(model, small)
    module = network.module(model).eval()
    if dtype == "bfloat16" and x.ndim == 4:  # Clips pass through kernels of five axes.
        module = module.to(memory_format=torch.channels_last)
        # A whole model takes images as they are; a network those of its own type.
        x = x if network.whole else x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return torch.compile(module) if compiled else module, x, None


def files(network: Network, small: bool, models: Path, name: str) -> dict[str, Path]:
    """Where the OpenVINO models of a network are, by part."""
    whose = ("small_" if small else "") + (network.name if network.whole else "sd")
    return {part: models / f"{whose}_{part}_{name}.xml" for part in network.parts}


def from_files(network: Network, small: bool, models: Path, name: str, plain: bool = False) -> Runnable:
    """What was written there; of the model around it only what is needed.

    Args:
        plain: leave out what quantsr does to a model before it is compiled, in the rest of this process.
    """
    if plain:
        networks.write_out_norms = lambda model: None
    found = files(network, small, models, name)
    size = sum(file.with_suffix(".bin").stat().st_size for file in found.values())
    read = {part: core().read_model(file) for part, file in found.items()}
    model = network.architecture(small)
    x = network.input(model, small)
    if network.whole:
        return with_networks(model, read, "auto"), x, size
    return CompiledNetwork(read[network.name]), x, size


def write(network: Network, small: bool, models: Path, name: str, change: Callable | None = None) -> None:
    """Convert full precision, or what ``change(model, network, small)`` makes of it, unless that was done before."""
    targets = files(network, small, models, name)
    if all(file.is_file() for file in targets.values()):
        return
    model = network.teacher("float32" if network.whole else "bfloat16", small)
    if change is not None:
        model = change(model, network, small)
    model.float()
    for part, file in targets.items():
        converted = convert(network.kind.NETWORKS[part](model).eval(), *network.kind.example(model, part, SIDE))
        shorten(converted)
        ov.save_model(converted, file, compress_to_fp16=False)


def write_by_nncf(network: Network, small: bool, models: Path, name: str) -> None:
    """Post-training quantization by NNCF, "performance" preset, of the same calibration input."""
    import nncf

    targets = files(network, small, models, name)
    if all(file.is_file() for file in targets.values()):
        return
    model = network.teacher("float32", small)
    for part, file in targets.items():
        sample = network.kind.example(model, part, SIDE)
        quantized = nncf.quantize(
            convert(network.kind.NETWORKS[part](model).eval(), *sample),
            nncf.Dataset([[x.numpy() for x in sample]]),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=1,
        )
        ov.save_model(quantized, file)


def student_of(kind: type[QuantizationMethod], bits: str) -> Callable[[Teacher, Network, bool], Teacher]:
    """A method's student: observed on one input, not trained (that changes numbers, not time)."""

    def build(teacher: Teacher, network: Network, small: bool) -> Teacher:
        method = kind(teacher, Bits.parse(bits), **({} if network.whole else {"parts": network.parts}))
        student = method.student
        run = {"denoiser": student.denoise, "decoder": lambda x: student.decode(x, x)}.get(network.name, student)
        x = network.input(teacher, small) if network.whole else network.kind.example(teacher, network.name, SIDE)[0]
        with torch.no_grad():
            for observation in ("observe_smoothing", "observe_ranges"):
                with mode(student, observation):
                    run(x)
                settle(student)
        return fold(student).requires_grad_(False)

    return build


@dataclass(frozen=True)
class Runtime:
    """One column.

    Attributes:
        run: makes what is timed, from a network, ``small`` and the folder of models.
        prepare: writes the models first, in a process whose memory is not counted; None where there are none.
    """

    run: Callable[[Network, bool, Path], Runnable]
    prepare: Callable[[Network, bool, Path], None] | None = None


def written(name: str, prepare: Callable[..., None], plain: bool = False, **options: Any) -> Runtime:
    """A runtime of OpenVINO models."""
    return Runtime(partial(from_files, name=name, plain=plain), partial(prepare, name=name, **options))


def student(kind: type[QuantizationMethod], bits: str) -> Runtime:
    """A method's student."""
    return written(f"{kind.__name__.lower()}_{bits}", write, change=student_of(kind, bits))


RUNTIMES: dict[str, Runtime] = {
    "torch_fp32": Runtime(lambda network, small, _: in_torch(network, small, "float32")),
    "torch_bf16": Runtime(lambda network, small, _: in_torch(network, small, "bfloat16")),
    "compile_bf16": Runtime(lambda network, small, _: in_torch(network, small, "bfloat16", compiled=True)),
    "openvino_bf16": written("bf16", write, plain=True),
    "nncf_int8": written("nncf_int8", write_by_nncf, plain=True),
    "minmax_w8a8": student(MinMax, "w8a8"),
    "passionsr_w8a8": student(PassionSR, "w8a8"),
    "qartsr_w4a4": student(QArtSR, "w4a4"),
    "qartsr_w2a2": student(QArtSR, "w2a2"),
}


def missing(runtime: str) -> str | None:
    """Why a runtime cannot be measured here."""
    if runtime == "nncf_int8" and find_spec("nncf") is None:
        return "left out, nncf is not installed"
    return None
