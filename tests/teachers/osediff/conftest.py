"""A very small OSEDiff in every form in which its weights are kept."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.osediff import random_osediff

TOKENS, CHANNELS, RANK = 4, 8, 3
MICRO = {
    "prompt_tokens": TOKENS,
    "color_fix": "none",
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [4, 8],
        "layers_per_block": 2,
        "norm_num_groups": 4,
    },
    "unet": {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 2,
        "attention_head_dim": [2, 4],
        "cross_attention_dim": CHANNELS,
        "use_linear_projection": True,
        "norm_num_groups": 4,
    },
}
"""The layout of Stable Diffusion 2.1, two levels of it, with few channels."""


@pytest.fixture(scope="session")
def original() -> OneStepTeacher:
    """Stable Diffusion without adapters; weights are rounded to 16 bits, so that fp16 files hold the same ones."""
    teacher = random_osediff(seed=3, **MICRO)
    with torch.no_grad():
        for tensor in teacher.state_dict().values():
            tensor.copy_(tensor.half())
    return teacher


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def folder(original, tmp_path_factory) -> Path:
    """Both networks as diffusers saves them."""
    path = tmp_path_factory.mktemp("diffusers")
    original.vae.save_pretrained(path / "vae")
    original.unet.save_pretrained(path / "unet")
    return path


@pytest.fixture(scope="session")
def prompt_file(original, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "empty_context_embedding.pt"
    torch.save(original.prompt_embedding, path)
    return path


# The original naming, written down here by hand, for diffusers' converter to be checked against.

UNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet_name(name: str, blocks: int = 2) -> str:
    """Of a tensor of the UNet; ``blocks`` residual blocks a level."""
    module, _, kind = name.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{kind}"
    stage, level, part, number, rest = re.fullmatch(
        r"(\w+?)(?:_blocks?\.(\d+)|_block)\.(\w+)\.(\d+)\.(.+)", name
    ).groups()
    i, j = int(level or 0), int(number)
    if part == "resnets":
        layer, _, kind = rest.partition(".")
        rest = f"{UNET_LAYERS[layer]}.{kind}"
    column = 0 if part == "resnets" else 1
    if stage == "mid":
        return f"middle_block.{2 * j + column}.{rest}"
    if part == "downsamplers":
        return f"input_blocks.{(i + 1) * (blocks + 1)}.0.{rest.replace('conv', 'op')}"
    if part == "upsamplers":  # After the attention, where there is one.
        return f"output_blocks.{i * (blocks + 1) + blocks}.{1 if i == 0 else 2}.{rest}"
    place = f"input_blocks.{1 + i * (blocks + 1) + j}" if stage == "down" else f"output_blocks.{i * (blocks + 1) + j}"
    return f"{place}.{column}.{rest}"


def original_vae_name(name: str, levels: int = 2) -> str:
    """Of a tensor of the VAE."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    name = re.sub(r"\.to_([qkv])\.", r".\1.", name).replace("to_out.0", "proj_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    return re.sub(r"resnets\.(\d)", r"block.\1", name).replace("samplers.0", "sample")


@pytest.fixture(scope="session")
def original_naming(original) -> dict[str, Tensor]:
    """The content of a single file, with what the released ones also hold."""
    unet = {original_unet_name(name): tensor for name, tensor in original.unet.state_dict().items()}
    vae = {original_vae_name(name): tensor for name, tensor in original.vae.state_dict().items()}
    # Attention of the VAE was made of 1x1 convolutions.
    attention = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")
    vae = {name: tensor[..., None, None] if attention.search(name) else tensor for name, tensor in vae.items()}
    return {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in vae.items()},
        "cond_stage_model.model.positional_embedding": torch.zeros(TOKENS, CHANNELS),
        "model_ema.decay": torch.ones(()),
        "betas": torch.zeros(1000),
    }


# OSEDiff's checkpoint, by peft itself.


def adapted(network: torch.nn.Module, adapters: dict[str, list[str]], seed: int) -> None:
    """Give a network adapters of random weights, as OSEDiff's training does."""
    for name, modules in adapters.items():
        network.add_adapter(LoraConfig(r=RANK, init_lora_weights="gaussian", target_modules=modules), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora" in name or name.startswith("conv_in.base_layer"):
                parameter.normal_(std=0.3, generator=generator)
    network.set_adapter(list(adapters))


def layers(network: torch.nn.Module, *beginnings: str) -> list[str]:
    """Linear layers and convolutions whose name begins so, but for those of the timestep."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    found = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    return [name for name in found if name.startswith(beginnings) and "time_emb" not in name]


@pytest.fixture(scope="session")
def with_peft(folder) -> tuple[UNet2DConditionModel, AutoencoderKL, dict]:
    """Both networks under peft's adapters, and what OSEDiff's authors save of them."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    lists = {
        "unet_lora_encoder_modules": layers(unet, "down_blocks", "conv_in"),
        "unet_lora_decoder_modules": layers(unet, "up_blocks", "conv_out"),
        "unet_lora_others_modules": layers(unet, "mid_block"),
        # The authors' search finds some modules more than once.
        "vae_lora_encoder_modules": [*layers(vae, "encoder", "quant_conv"), "quant_conv", "encoder.conv_in"],
    }
    named = {f"default_{part}": lists[f"unet_lora_{part}_modules"] for part in ("encoder", "decoder", "others")}
    adapted(unet, named, seed=1)
    adapted(vae, {"default_encoder": lists["vae_lora_encoder_modules"]}, seed=2)
    states = {
        "state_dict_unet": {k: v.clone() for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: v.clone() for k, v in vae.state_dict().items() if "lora" in k},
    }
    return unet, vae, {"rank_unet": RANK, "rank_vae": RANK, **lists, **states}


@pytest.fixture
def content(with_peft) -> dict:
    """Of OSEDiff's checkpoint, to be changed by a test."""
    return {key: value.copy() if isinstance(value, dict | list) else value for key, value in with_peft[2].items()}


@pytest.fixture(scope="session")
def checkpoint(with_peft, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "osediff.pkl"
    torch.save(with_peft[2], path)
    return path


# A text encoder.


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> Path:
    """A folder with ``tokenizer/`` and ``text_encoder/``, of single letters."""
    path = tmp_path_factory.mktemp("text")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), start, end]
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": "!", "model_max_length": TOKENS}
    (path / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **special})
    )
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=CHANNELS,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokens.index(start),
        eos_token_id=tokens.index(end),
    )
    torch.manual_seed(4)
    CLIPTextModel(config).save_pretrained(path / "text_encoder")
    return path
