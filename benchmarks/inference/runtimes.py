"""How a network is run: each runtime makes a function of one tensor, and says how large its weights are on disk."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino as ov
import torch
from networks import Network
from torch import Tensor

from quantsr.deploy.openvino.convert import convert
from quantsr.deploy.openvino.exporting import NETWORKS as PARTS
from quantsr.deploy.openvino.exporting import example
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
from quantsr.teachers.one_step import OneStepTeacher

Runnable = tuple[Callable[[Tensor], Tensor], Tensor, int | None]
"""What runs, its input, and bytes on disk where there is a file."""
SIDE = 16
"""Latent pixels of what students are calibrated on and networks converted with."""


def in_torch(network: Network, small: bool, dtype: str, compiled: bool = False) -> Runnable:
    """Eager or compiled."""
    model = network.teacher(dtype, small)
    x = network.input(model, small)
    module = network.module(model).eval()
    if dtype == "bfloat16":
        module = module.to(memory_format=torch.channels_last)
        # A whole model takes images as they are; a network those of its own type.
        x = x if network.part is None else x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return torch.compile(module) if compiled else module, x, None


def in_openvino(
    network: Network, small: bool, models: Path | None, name: str, change: Callable | None = None
) -> Runnable:
    """Full precision, or what ``change(model, network)`` makes of a model."""
    if models is None:
        with TemporaryDirectory() as folder:
            return in_openvino(network, small, Path(folder), name, change)
    plain = network.teacher("float32" if network.part is None else "bfloat16", small)
    x = network.input(plain, small)
    student = plain
    files = {part: models / f"{name}_{part}{'_small' if small else ''}.xml" for part in network.parts}
    if not all(file.is_file() for file in files.values()):
        if change is not None:
            student = change(plain, network)
        student.float()
        for part, file in files.items():
            model = convert(PARTS[part](student).eval(), example(student, part, SIDE))
            shorten(model)
            ov.save_model(model, file, compress_to_fp16=False)
    size = sum(file.with_suffix(".bin").stat().st_size for file in files.values())
    found = {part: ov.Core().read_model(file) for part, file in files.items()}
    del student
    if network.part is None:
        return with_networks(plain, found, "auto"), x, size
    return CompiledNetwork(found[network.part]), x, size


def by_nncf(network: Network, small: bool, models: Path | None) -> Runnable:
    """Post-training quantization by NNCF, "performance" preset, of the same calibration latent."""
    import nncf

    plain = network.teacher("float32", small)
    x, found, size = network.input(plain, small), {}, 0
    for part in network.parts:
        sample = example(plain, part, SIDE)
        model = nncf.quantize(
            convert(PARTS[part](plain).eval(), sample),
            nncf.Dataset([sample.numpy()]),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=1,
        )
        with TemporaryDirectory() as folder:
            ov.save_model(model, Path(folder) / "model.xml")
            size += (Path(folder) / "model.bin").stat().st_size
        found[part] = model
    if network.part is None:
        return with_networks(plain, found, "auto"), x, size
    del plain
    return CompiledNetwork(found[network.part]), x, size


def student_of(kind: type[QuantizationMethod], bits: str) -> Callable[[OneStepTeacher, Network], OneStepTeacher]:
    """A method's student: observed on one input, not trained (that changes numbers, not time)."""

    def build(teacher: OneStepTeacher, network: Network) -> OneStepTeacher:
        method = kind(teacher, Bits.parse(bits), parts=network.parts)
        run = {"encoder": method.student.embed, "denoiser": method.student.denoise}
        with torch.no_grad():
            for observation in ("observe_smoothing", "observe_ranges"):
                with mode(method.student, observation):
                    for part in network.parts:
                        x = example(teacher, part, SIDE)
                        run[part](x) if part in run else method.student.decode(x, x)
                settle(method.student)
        return fold(method.student).requires_grad_(False)

    return build


def student(kind: type[QuantizationMethod], bits: str) -> Callable[[Network, bool, Path | None], Runnable]:
    """The runtime of a method's student."""
    name = f"{kind.__name__.lower()}_{bits}"
    return lambda network, small, models: in_openvino(network, small, models, name, student_of(kind, bits))


RUNTIMES: dict[str, Callable[[Network, bool, Path | None], Runnable]] = {
    "torch_fp32": lambda network, small, _: in_torch(network, small, "float32"),
    "torch_bf16": lambda network, small, _: in_torch(network, small, "bfloat16"),
    "compile_bf16": lambda network, small, _: in_torch(network, small, "bfloat16", compiled=True),
    "openvino_bf16": lambda network, small, models: in_openvino(network, small, models, "bf16"),
    "nncf_int8": by_nncf,
    "minmax_w8a8": student(MinMax, "w8a8"),
    "passionsr_w8a8": student(PassionSR, "w8a8"),
    "qartsr_w4a4": student(QArtSR, "w4a4"),
}


def missing(runtime: str) -> str | None:
    """Why a runtime cannot be measured here."""
    if runtime == "nncf_int8" and find_spec("nncf") is None:
        return "left out, nncf is not installed"
    return None
