"""Files in the authors' formats, written by hand, with the original names of Stable Diffusion's modules."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from quantsr.quant.prepare import is_attention, is_layer

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="reference vectors (../shared/reference) absent")

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MICRO_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""The UNet of the micro teacher of tests/conftest.py."""

VAE_INNER = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_names(levels: int, blocks: int) -> dict[str, str]:
    """Blocks of an autoencoder."""
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half, direction in (("encoder", "down"), ("decoder", "up")):
        names |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        names |= {f"{half}.conv_norm_out": f"{half}.norm_out", f"{half}.mid_block.attentions.0": f"{half}.mid.attn_1"}
        names |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
        for level in range(levels):
            ours = f"{half}.{direction}_blocks.{level}"
            theirs = f"{half}.{direction}.{level if half == 'encoder' else levels - 1 - level}"
            names |= {f"{ours}.resnets.{i}": f"{theirs}.block.{i}" for i in range(blocks + (half == "decoder"))}
            names[f"{ours}.{direction}samplers.0.conv"] = f"{theirs}.{direction}sample.conv"
    return names


def original(name: str, blocks: dict[str, str], unet: bool) -> str:
    """The original name of a diffusers module."""
    block = max((b for b in blocks if name == b or name.startswith(f"{b}.")), key=len)
    inner = name[len(block) :].removeprefix(".")
    if ".attentions." in block:
        inner = inner if unet else VAE_ATTENTION.get(inner, inner)
    else:
        inner = (RESIDUAL if unet else VAE_INNER).get(inner, inner)
    return ".".join(filter(None, (blocks[block], inner)))


def bounds(x: Tensor, rows: bool, tighter: float = 0.95) -> tuple[Tensor, Tensor]:
    """Bounds as training may leave them, per row in the shape of the authors' or of all of ``x``."""
    if not rows:
        return tighter * x.min(), tighter * x.max()
    axes = tuple(range(1, x.ndim))
    return tighter * x.amin(axes, keepdim=True), tighter * x.amax(axes, keepdim=True)


def passionsr_layer(module: Any, split: bool, convolution: bool, generator: torch.Generator) -> dict[str, Tensor]:
    """Entries of one calibrated layer; ``convolution``: in the authors' model it is one."""
    weight = module.weight.detach()
    weight = weight[..., None, None] if convolution and weight.ndim == 2 else weight
    rows, channels = weight.shape[:2]
    shape = (1, channels, *(1 for _ in weight.shape[2:]))
    scale = 0.5 + torch.rand(shape, generator=generator)
    entries = {"scale_factor": scale, "offset": 0.2 * torch.randn(shape, generator=generator)}
    pieces = (weight * scale).split([channels // 2, channels - channels // 2], 1) if split else (weight * scale,)
    for half, piece in enumerate(pieces):
        act = torch.tensor(-1.5 - half / 4), torch.tensor(2.0 + half / 4)
        for end, w, x in zip(("min", "max"), bounds(piece, rows=True), act, strict=True):
            entries |= {f"weight_quantizer_{half}.x_{end}": w, f"act_quantizer_{half}.x_{end}": x}
    if module.bias is not None:
        low, high = bounds(module.bias.detach() + torch.linspace(-0.1, 0.1, rows), rows=False)
        entries |= {"bias_quantizer.x_min": low, "bias_quantizer.x_max": high}
    return entries


def empty_passionsr_layer(shape: tuple[int, ...], has_bias: bool, halves: int) -> dict[str, Tensor]:
    """Names and shapes of a layer's entries for a weight of a shape, without values."""
    rows, channels, *kernel = shape
    ones = (1,) * len(kernel)
    entries = {name: torch.empty(1, channels, *ones) for name in ("scale_factor", "offset")}
    for end in ("min", "max"):
        for half in range(halves):
            entries[f"weight_quantizer_{half}.x_{end}"] = torch.empty(rows, 1, *ones)
            entries[f"act_quantizer_{half}.x_{end}"] = torch.empty(())
        if has_bias:
            entries[f"bias_quantizer.x_{end}"] = torch.empty(())
    return entries


def passionsr_attention(module: Any, keys: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Entries of the products of one attention."""
    entries = {f"act_quantizer_{f}.x_{e}": torch.tensor(v) for f in "qkv" for e, v in (("min", -2.0), ("max", 2.5))}
    entries |= {"act_quantizer_w.x_min": torch.tensor(0.0), "act_quantizer_w.x_max": torch.tensor(1.2)}
    head = module.to_q.weight.shape[0] // module.heads
    for name, size in (("scale_factor_qk", head), ("scale_factor_vw", keys)):
        entries[name] = 0.5 + torch.rand(size, generator=generator)
    return entries


def passionsr_state(network: nn.Module, blocks: dict[str, str], split: bool, keys: int = 16) -> dict[str, Tensor]:
    """The state dict that the authors save for a calibrated UNet (split) or VAE (not split)."""
    generator, state = torch.Generator().manual_seed(11), {}
    for name, module in network.named_modules():
        if is_layer(module):
            entries = passionsr_layer(module, split, ".attentions." in name and not split, generator)
        elif is_attention(module) and split:
            entries = passionsr_attention(module, keys, generator)
        else:
            entries = {leaf: p.detach().clone() for leaf, p in module.named_parameters(recurse=False)}
        if entries:
            state |= {f"model.model.{original(name, blocks, split)}.{e}": tensor for e, tensor in entries.items()}
    return state


def quantvsr_layer(module: Any, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The state dict of one of QuantVSR's layers."""
    weight = module.weight.detach()
    rows, channels = weight.shape[:2]
    up = 0.1 * torch.randn(rows, rank, generator=generator)
    down = 0.1 * torch.randn(rank, weight[0].numel(), generator=generator)
    entries = {"stca._rank": torch.tensor(rank), "stca.L1": up, "stca.L2": down}
    residual = weight - (up @ down).view_as(weight)
    for suffix, piece in zip(("", "1"), residual.split(channels // 2, 1), strict=True):
        matrix = torch.linalg.qr(torch.randn(channels // 2, channels // 2, generator=generator))[0]
        entries[f"rot{suffix}.rot_mat"] = matrix
        rotated = torch.einsum("oi...,ij->oj...", piece, matrix if weight.ndim == 2 else matrix.T)
        entries |= dict(zip((f"wq{suffix}.x_min", f"wq{suffix}.x_max"), bounds(rotated, rows=True), strict=True))
    shape = (1, rows, *(1 for _ in weight.shape[2:]))
    return entries | {"lba.lba": 0.1 * torch.randn(shape, generator=generator)}


def quantvsr_content(unet: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What the authors save of a calibrated UNet."""
    generator = torch.Generator().manual_seed(12)
    kept = ("time_embed.0", "input_blocks.0.0", "out.2")
    layers = [(name, m) for name, m in unet.named_modules() if is_layer(m) and name not in kept]
    return {f"model.{name}": quantvsr_layer(m, 3 + i % 3, generator) for i, (name, m) in enumerate(layers)}


def vectors_of(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reference vectors and their configuration."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def names_of(pattern: str) -> list[str]:
    return sorted(path.stem for path in REFERENCE.glob(f"{pattern}.safetensors"))


def module_of(vectors: dict[str, Tensor]) -> nn.Module:
    """The full-precision layer of reference vectors: 3x3 with padding 1, or linear."""
    rows, channels = vectors["weight"].shape[:2]
    linear = vectors["weight"].ndim == 2
    module = nn.Linear(channels, rows) if linear else nn.Conv2d(channels, rows, 3, padding=1)
    module.load_state_dict({"weight": vectors["weight"], "bias": vectors["bias"]})
    return module.requires_grad_(False)


def video_unet_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every entry of the full-size video UNet, which holds Stable Diffusion's."""
    content = json.loads((REFERENCE / "mgldvsr_unet_keys.json").read_text())
    return {name: tuple(shape) for name, shape in content["state_dict"].items()}


def assert_agrees(ours: Tensor, theirs: Tensor, step: float = 0.0) -> None:
    """Equal but for float error; up to 0.1 % of the elements may be off by ``step``, a quantization step."""
    difference = (ours.reshape(theirs.shape) - theirs).abs()
    tolerance = 1e-4 * theirs.abs().max()
    off = difference > tolerance
    assert off.float().mean() <= 1e-3, f"{int(off.sum())} of {off.numel()} elements differ, by {difference.max()}"
    assert difference.max() <= step + tolerance
