"""What diffusers' networks are made of: blocks in the order in which they run, and where two tensors are joined."""

from diffusers import UNet2DConditionModel
from torch import nn


def blocks_of(network: nn.Module) -> list[str]:
    """Blocks of a UNet, or of a VAE's encoder or decoder: whichever stages it has, between its convolutions."""
    down = [f"down_blocks.{i}" for i in range(len(getattr(network, "down_blocks", ())))]
    up = [f"up_blocks.{i}" for i in range(len(getattr(network, "up_blocks", ())))]
    stages = [*down, "mid_block", *up]
    inner = [f"{stage}.{name}" for stage in stages for name in _in_order(network.get_submodule(stage))]
    return ["conv_in", *inner, "conv_out"]


def _in_order(stage: nn.Module) -> list[str]:
    """Blocks of one stage as they run: residual, attention, residual, ..., sampler."""
    resnets = [f"resnets.{i}" for i in range(len(stage.resnets))]
    attentions = [f"attentions.{i}" for i in range(len(getattr(stage, "attentions", None) or []))]
    # A middle block starts with a residual block of its own before the first (attention, residual) pair.
    first, rest = ([], resnets) if len(resnets) == len(attentions) or not attentions else (resnets[:1], resnets[1:])
    pairs = zip(attentions, rest, strict=True) if first else zip(rest, attentions, strict=False)
    names = first + [name for pair in pairs for name in pair] if attentions else resnets
    for sampler in ("downsamplers", "upsamplers"):
        if getattr(stage, sampler, None):
            names.append(f"{sampler}.0")
    return names


def concatenations(unet: UNet2DConditionModel) -> dict[str, int]:
    """Layers on the way up that take hidden state and skip connection, one after the other along the channels.

    Returns:
        How many channels the hidden state has, by the layer's name.
    """
    found, channels = {}, unet.config.block_out_channels[-1]
    for i, stage in enumerate(unet.up_blocks):
        for j, resnet in enumerate(stage.resnets):
            for layer in ("conv1", "conv_shortcut"):
                if getattr(resnet, layer) is not None:
                    found[f"up_blocks.{i}.resnets.{j}.{layer}"] = channels
            channels = resnet.out_channels
    return found
