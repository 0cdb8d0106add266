"""The layers compute what the authors' own code computed: outputs and gradients of the reference vectors.

Agreement: within 1e-4 of the largest value, but for at most 0.1 % of the elements, which may be one quantization step
off (halves are rounded differently).
"""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from quantsr.quant.calibrate import mode, settle
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="reference vectors (../shared/reference) are not here")


def load(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def names(pattern: str) -> list[str]:
    return sorted(path.stem for path in REFERENCE.glob(f"{pattern}.safetensors"))


def assert_agrees(ours: torch.Tensor, theirs: torch.Tensor, step: float = 0.0) -> None:
    """Equal but for float error; up to 0.1 % of the elements may be off by ``step``."""
    difference = (ours.reshape(theirs.shape) - theirs).abs()
    tolerance = 1e-4 * theirs.abs().max()
    off = difference > tolerance
    assert off.float().mean() <= 1e-3, f"{int(off.sum())} of {off.numel()} elements differ, by {difference.max()}"
    if off.any():
        assert difference.max() <= step + tolerance


def module_of(vectors: dict[str, torch.Tensor]) -> nn.Module:
    """The full-precision layer: 3x3 with padding 1, or linear."""
    weight = vectors["weight"]
    rows, channels = weight.shape[:2]
    module = nn.Conv2d(channels, rows, 3, padding=1) if weight.ndim == 4 else nn.Linear(channels, rows)
    module.load_state_dict({"weight": weight, "bias": vectors["bias"]})
    return module.requires_grad_(False)


@pytest.mark.parametrize("name", names("passionsr_lbq_*"))
def test_learnable_boundary_quantizer(name):
    vectors, metadata = load(name)
    per_channel = vectors["x_min"].ndim > 0
    granularity = "channel" if per_channel else "tensor"
    spec = AffineSpec(int(metadata["bits"]), granularity=granularity, range="learned", as_released=True)
    x = vectors["x"].clone().requires_grad_()
    quantizer = Quantizer(spec, (x.shape[1],), rows=x.shape[0] if per_channel else 1)

    quantizer.record(x)  # The released quantizer starts at the extremes of the data, then its bounds were moved.
    settle(quantizer)
    with torch.no_grad():
        quantizer.lower.copy_(vectors["x_min"].reshape(quantizer.lower.shape))
        quantizer.upper.copy_(vectors["x_max"].reshape(quantizer.upper.shape))
    y = quantizer(x)
    (y * vectors["y_cotangent"]).sum().backward()

    step = float((vectors["x_max"] - vectors["x_min"]).max()) / spec.qmax
    assert_agrees(y, vectors["y"], step)
    assert_agrees(x.grad, vectors["grad.x"], float(vectors["y_cotangent"].abs().max()))
    assert_agrees(quantizer.lower.grad, vectors["grad.x_min"])
    assert_agrees(quantizer.upper.grad, vectors["grad.x_max"])


@pytest.mark.parametrize("name", names("passionsr_layer_*"))
def test_passionsr_layer(name):
    vectors, metadata = load(name)
    split, bits = metadata["split"] == "True", int(metadata["bits"])
    recipe = LayerRecipe(
        weight=AffineSpec(bits, granularity="channel", range="learned", as_released=True),
        act=AffineSpec(bits, range="learned", as_released=True),
        smoothing=float(metadata["alpha"]),
        offset=True,
        channel_split=split,
        quantize_bias=True,
    )
    layer = QuantizedLayer(module_of(vectors), recipe)

    for observation in ("observe_smoothing", "observe_ranges"):
        with mode(layer, observation):
            layer(vectors["x"])
        settle(layer)
    assert_agrees(layer.smoothing.scale, vectors["scale_at_init"].flatten())
    assert_agrees(layer.constant(), vectors["bias_as_used"])

    parts = 2 if split else 1
    with torch.no_grad():
        layer.smoothing.scale.copy_(vectors["scale"].flatten())
        layer.smoothing.offset.copy_(vectors["offset"].flatten())
        for end, ours in (("min", "lower"), ("max", "upper")):
            weight = torch.stack([vectors[f"weight_bounds.{i}.{end}"].flatten() for i in range(parts)], 1)
            getattr(layer.weight_quantizer, ours).copy_(weight)
            act = torch.stack([vectors[f"act_bounds.{i}.{end}"] for i in range(parts)])
            getattr(layer.input_quantizer, ours).copy_(act)
    layer.requires_grad_(True)
    y = layer(vectors["x"])
    (y * vectors["y_cotangent"]).sum().backward()
    assert_agrees(y, vectors["y"], step=float(vectors["y"].abs().max()) / 10)
    assert_agrees(layer.smoothing.scale.grad, vectors["grad.scale"].flatten())
    if "grad.offset" in vectors:
        assert_agrees(layer.smoothing.offset.grad, vectors["grad.offset"].flatten())
    assert_agrees(layer.input_quantizer.upper.grad[0], vectors["grad.act_bounds.0.max"])


def assert_agrees_but_for_ties(layer: QuantizedLayer, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for rows of the weight with a value that float error may round to either side.

    The authors' branch is an SVD, whose last digits differ from processor to processor.
    """
    scale = layer.weight_quantizer.qparams(layer.weight)[0]
    scaled = layer.transformed_weight() / scale
    settled = ((scaled - scaled.floor() - 0.5).abs() > 1e-4).flatten(1).all(1)
    assert settled.sum() > len(settled) / 2
    axis = layer.operation.axis
    ours, theirs = (y.movedim(axis, 0) for y in (ours, theirs.reshape(ours.shape)))
    assert_agrees(ours[settled], theirs[settled])
    assert (ours - theirs).abs().max() <= theirs.abs().max() / 10


@pytest.mark.parametrize("name", names("quantvsr_layer_*"))
def test_quantvsr_layer(name):
    vectors, metadata = load(name)
    bits = int(metadata["bits"])
    recipe = LayerRecipe(
        weight=AffineSpec(bits, granularity="channel", as_released=True),
        act=AffineSpec(bits, range="dynamic", as_released=True),
        rotation=True,
        rank=vectors["low_rank.L1"].shape[1],
        channel_split=True,
        bias_alignment=True,
    )
    layer = QuantizedLayer(module_of(vectors), recipe)
    # The authors' convolutions multiply by the rotation from the left, their linear layers from the right.
    convolution = vectors["weight"].ndim == 4
    layer.rotation.set_matrices(
        [vectors[f"rotation.{i}"].T if convolution else vectors[f"rotation.{i}"] for i in (0, 1)]
    )
    bounds = [[vectors[f"weight_bounds.{i}.{end}"].flatten() for i in (0, 1)] for end in ("min", "max")]
    layer.weight_quantizer.set_bounds(*(torch.stack(values, 1) for values in bounds))
    assert_agrees_but_for_ties(layer, layer(vectors["x"]), vectors["y_at_init"])

    with torch.no_grad():
        layer.low_rank.L1.copy_(vectors["low_rank.L1"])
        layer.low_rank.L2.copy_(vectors["low_rank.L2"])
        layer.bias_alignment.copy_(vectors["bias_alignment"].flatten())
    for parameter in (layer.low_rank.L1, layer.low_rank.L2, layer.bias_alignment):
        parameter.requires_grad_(True)
    y = layer(vectors["x"])
    (y * vectors["y_cotangent"]).sum().backward()
    assert_agrees(y, vectors["y"], step=float(vectors["y"].abs().max()) / 10)
    assert_agrees(layer.low_rank.L1.grad, vectors["grad.low_rank.L1"])
    assert_agrees(layer.low_rank.L2.grad, vectors["grad.low_rank.L2"])
    assert_agrees(layer.bias_alignment.grad, vectors["grad.bias_alignment"].flatten())
