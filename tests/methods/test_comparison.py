"""What makes a comparison of methods fair: they quantize the same, and are told to by the same words."""

import pytest
import torch

from quantsr.methods.efficientdm import EfficientDM
from quantsr.methods.lsq import LSQ
from quantsr.methods.minmax import MinMax
from quantsr.methods.passionsr import PassionSR
from quantsr.methods.qartsr import QArtSR
from quantsr.methods.qdiffusion import QDiffusion
from quantsr.methods.quantization import PARTS
from quantsr.methods.quantvsr import QuantVSR
from quantsr.methods.quarot import QuaRot
from quantsr.methods.svdquant import SVDQuant
from quantsr.methods.viditq import ViDiTQ
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.calibrate import quantized_modules, set_mode
from quantsr.quant.spec import Bits

METHODS = [MinMax, LSQ, QDiffusion, EfficientDM, SVDQuant, QuaRot, ViDiTQ, PassionSR, QArtSR, QuantVSR]
KEPT_BY_THE_PAPER = {QuantVSR: {"unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1"}}


def quantized(method) -> tuple[set[str], set[str]]:
    """Names of the quantized layers, and of the attention products."""
    modules = dict(quantized_modules(method.student))
    products = {name for name, module in modules.items() if isinstance(module, QuantizedAttention)}
    return modules.keys() - products, products


@pytest.fixture
def batch():
    return {"lq": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("attention", [True, False], ids=["with attention", "layers alone"])
def test_all_methods_quantize_the_same_of_the_denoiser(teacher, kind, attention):
    options = {"parts": ["denoiser"], "attention": attention}
    layers, products = quantized(MinMax(teacher, Bits(4, 4), **options))
    own_layers, own_products = quantized(kind(teacher, Bits(4, 4), **options))
    assert own_layers == layers - KEPT_BY_THE_PAPER.get(kind, set())
    assert own_products == products and bool(products) == attention


@pytest.mark.parametrize("kind", METHODS)
def test_all_layers_of_the_same_width_have_it(teacher, kind):
    method = kind(teacher, Bits(3, 5), parts=["denoiser"])
    sensitive = set(teacher.sensitive()["denoiser"])
    for name, module in quantized_modules(method.student):
        if not isinstance(module, QuantizedAttention) and name not in sensitive:
            assert (module.recipe.weight.bits, module.recipe.act.bits) == (3, 5), name


class TestDistillation:
    """What LSQ and EfficientDM train against."""

    def test_a_student_in_full_precision_has_no_error(self, teacher, batch):
        method = MinMax(teacher, Bits(4, 4))
        set_mode(method.student, "full_precision")
        assert method.distillation_loss(batch).item() < 1e-9

    def test_every_part_counts_alone_on_the_teachers_input(self, teacher, batch):
        method = MinMax(teacher, Bits(4, 4))
        set_mode(method.student, "full_precision")
        first = teacher.unet.conv_in
        other = torch.nn.Conv2d(first.in_channels, first.out_channels, first.kernel_size, padding=first.padding)
        method.student.set_submodule("unet.conv_in", other)
        errors = {}
        for part in PARTS:
            method.parts = [part]
            errors[part] = method.distillation_loss(batch).item()
        assert errors["denoiser"] > 1e-3 and errors["encoder"] < 1e-9 and errors["decoder"] < 1e-9
        method.parts = list(PARTS)
        assert method.distillation_loss(batch).item() == pytest.approx(sum(errors.values()))
