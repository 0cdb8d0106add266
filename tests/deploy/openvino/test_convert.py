"""A network becomes a model of open size; what depends on no input becomes a constant."""

import subprocess

import openvino as ov
import pytest
import torch

from quantsr.deploy.openvino import mgldvsr
from quantsr.deploy.openvino.convert import convert
from quantsr.deploy.openvino.networks import CompiledNetwork, compile_model
from quantsr.deploy.openvino.one_step import NETWORKS, example
from quantsr.deploy.openvino.statistics import GraphStatistics, norms, variant
from quantsr.methods.minmax import MinMax
from quantsr.normalization import by_tiles
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.spec import Bits
from tests.conftest import micro_teacher, micro_video_teacher
from tests.deploy.test_artefact import calibrate


@pytest.fixture(scope="module")
def teacher():
    return micro_teacher().freeze()


@pytest.fixture(scope="module")
def video_teacher():
    return micro_video_teacher().freeze()


@pytest.fixture(scope="module")
def decoder(teacher) -> ov.Model:
    return convert(NETWORKS["decoder"](teacher), *example(teacher, "decoder", 8))


@pytest.mark.parametrize("part", NETWORKS)
def test_full_precision_is_the_same_at_any_size(teacher, part):
    network = NETWORKS[part](teacher).eval()
    compiled = CompiledNetwork(convert(network, *example(teacher, part, 8)), "f32")
    for height, width in ((8, 8), (12, 6)):
        channels = 3 if part == "encoder" else 4
        x = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = torch.cat([network(image) for image in x.split(1)])
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


def test_nobody_is_told_of_it(python):
    """OpenVINO reports every import and every conversion, unless what it reports with is missing."""
    code = "import quantsr.deploy.openvino, openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n"


def test_timestep_and_prompt_take_no_operations(artefact_of):
    """The layers of the time embedding and the prompt's keys and values are not in the model of a student."""
    student, _ = artefact_of(MinMax, "w4a4", attention=False)
    model = convert(NETWORKS["denoiser"](student), *example(student, "denoiser", 8))
    layers = [m for m in student.unet.modules() if isinstance(m, FoldedLayer)]
    names = dict(student.unet.named_modules())
    constant = [n for n, m in names.items() if isinstance(m, FoldedLayer) and _depends_on_nothing(n)]
    shifted = 1  # conv_out has 8 bits, and a second product for its rows.
    assert len(constant) > 5 and quantized_products(model) == len(layers) - len(constant) + shifted


def quantized_products(model: ov.Model) -> int:
    products = [n for n in model.get_ordered_ops() if n.get_type_name() in ("MatMul", "Convolution")]
    return sum("Multiply" in n.input_value(1).get_node().get_type_name() for n in products)


def _depends_on_nothing(name: str) -> bool:
    return "time_emb" in name or any(name.endswith(f"attn2.{key}") for key in ("to_k", "to_v"))


def test_measured_statistics_are_those_of_the_whole(decoder):
    """Two halves of a map that are equal have the statistics of one of them, and of the whole."""
    network = CompiledNetwork(decoder, "f32")
    half = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(2))
    once, twice = GraphStatistics(network), GraphStatistics(network)
    for statistics, count in ((once, 1), (twice, 2)):
        with statistics.measured():
            for _ in range(count):
                network(half)
    assert len(norms(network.model)) == len(once.moments) > 5
    for a, b in zip(once.moments, twice.moments, strict=True):
        assert (b[0] == 2 * a[0]).all()
        assert b[1:] == pytest.approx(a[1:], rel=1e-4, abs=1e-5)


def test_applied_statistics_of_the_whole_give_the_whole(decoder):
    network = CompiledNetwork(decoder, "f32")
    x = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(3))
    statistics = network.shared_statistics()
    with statistics.measured():
        network(x)
    with statistics.applied():
        applied = network(x)
    torch.testing.assert_close(applied, network(x), rtol=1e-3, atol=1e-3)


def test_tiles_follow_those_of_the_torch_network(teacher, decoder):
    network, compiled = NETWORKS["decoder"](teacher).eval(), CompiledNetwork(decoder, "f32")
    x = torch.randn(1, 4, 11, 9, generator=torch.Generator().manual_seed(4))
    expected, found = (by_tiles(n, n, x, 6, 4, teacher.latent_factor) for n in (network, compiled))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_variants_keep_the_model_as_it_is(decoder):
    before = len(decoder.get_ordered_ops())
    assert len(variant(decoder, "apply").inputs) == 1 + len(norms(decoder))
    assert len(variant(decoder, "measure").outputs) == 1 + len(norms(decoder))
    assert len(decoder.get_ordered_ops()) == before and len(decoder.inputs) == 1


def test_compiled_sizes_are_kept_for_the_last_two(decoder):
    network = CompiledNetwork(decoder, "f32")
    first = network.compiled([(1, 4, 4, 4)])
    network.compiled([(1, 4, 6, 4)])
    assert network.compiled([(1, 4, 4, 4)]) is first
    network.compiled([(1, 4, 8, 4)])
    assert len(network._compiled) == 2


def test_threads_are_those_of_torch(decoder):
    compiled = compile_model(decoder.clone(), [(1, 4, 4, 4)], "f32")
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


@pytest.mark.parametrize("part", mgldvsr.NETWORKS)
def test_so_is_a_segment_of_frames(video_teacher, part):
    """Of several inputs and outputs, its timestep another than the one that it was traced with."""
    network = mgldvsr.NETWORKS[part](video_teacher).eval()
    compiled = CompiledNetwork(convert(network, *mgldvsr.example(video_teacher, part, 8)), "f32")
    for size in (8, 12):
        given = [x / 2 if x.ndim == 1 else x for x in mgldvsr.example(video_teacher, part, size)]
        with torch.no_grad():
            expected, found = network(*given), compiled(*given)
        for y, e in zip(listed(found), listed(expected), strict=True):
            torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-4)


def listed(y) -> list:
    return [y] if isinstance(y, torch.Tensor) else list(y)


def test_the_layers_of_the_timestep_stay_where_it_is_an_input(video_teacher):
    """Only the prompt's keys and values are constants."""
    method = MinMax(video_teacher, Bits(6, 6), parts=["denoiser"], attention=False)
    calibrate(method.student, torch.rand(1, video_teacher.frames, 3, 8, 8))
    network = mgldvsr.Denoiser(method.student).eval()
    layers = {name: module for name, module in network.named_modules() if isinstance(module, FoldedLayer)}
    assert any("time_embed" in name for name in layers)
    model = convert(network, *mgldvsr.example(video_teacher, "denoiser", 8))
    prompted = [name for name in layers if name.endswith(("attn2.to_k", "attn2.to_v"))]
    sensitive = [
        m for m in layers.values() if m.recipe.weight.bits == 8
    ]  # Two products each, for rows that are shifted.
    assert len(prompted) > 2
    assert quantized_products(model) == len(layers) - len(prompted) + len(sensitive)
