"""OSEDiff's checkpoint (arXiv 2406.08177): low-rank adapters of Stable Diffusion's UNet and VAE encoder.

The file is one dict that was given to ``torch.save``. Its adapters are named by peft, which is not needed here. A
merged weight is

    W + alpha / rank * B A        alpha = 8, peft's default

with A ``(rank, in, *kernel)`` and B ``(out, rank, 1, 1)`` of a convolution, ``(rank, in)`` and ``(out, rank)`` of a
linear layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from quantsr.teachers.osediff.stable_diffusion import TITLES
from quantsr.teachers.weight_files import Differences, read

ALPHA = 8
LISTS = {
    "unet": {
        "default_encoder": "unet_lora_encoder_modules",
        "default_decoder": "unet_lora_decoder_modules",
        "default_others": "unet_lora_others_modules",
    },
    "vae": {"default_encoder": "vae_lora_encoder_modules"},
}
"""The adapters of each network, and under which entry of the file the modules are listed that have them."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of one network.

    Attributes:
        scaling: alpha / rank.
        factors: pairs of A and B, by module.
        replaced: tensors that stand in for the network's own, by their names.
    """

    scaling: float
    factors: dict[str, list[tuple[Tensor, Tensor]]]
    replaced: dict[str, Tensor]

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the network, by its name, with its adapters merged in (in float32)."""
        tensor = self.replaced.get(name, tensor)
        module, _, kind = name.rpartition(".")
        if kind != "weight" or module not in self.factors:
            return tensor
        update = sum(b.float().flatten(1) @ a.float().flatten(1) for a, b in self.factors[module])
        return (self.scaling * update).view(tensor.shape).add_(tensor)


def read_adapters(path: Path, networks: dict[str, nn.Module]) -> dict[str, Adapters]:
    """The adapters of ``unet`` and ``vae`` in OSEDiff's checkpoint.

    Args:
        path: of the file.
        networks: both, for their names and shapes.

    Raises:
        UserError: the file is damaged, is another one, or does not fit the networks.
    """
    content = read(path)
    entries = [
        entry for name, lists in LISTS.items() for entry in (f"rank_{name}", f"state_dict_{name}", *lists.values())
    ]
    found = content if isinstance(content, dict) else {}
    missing = [entry for entry in entries if entry not in found]
    Differences(missing=missing, left_alone=[str(entry) for entry in found]).refuse(
        path, "the format of OSEDiff's checkpoint"
    )
    return {name: _adapters_of(name, found, networks[name], path) for name in LISTS}


def _adapters_of(name: str, content: dict[str, Any], network: nn.Module, path: Path) -> Adapters:
    """The adapters of one network, checked against it."""
    rank, tensors = content[f"rank_{name}"], content[f"state_dict_{name}"]
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    pairs, nowhere, expected = [], [], {}
    for adapter, entry in LISTS[name].items():
        for target in dict.fromkeys(content[entry]):
            modules = _targeted(target, shapes)
            nowhere += [] if modules else [f"{target} in {entry}"]
            pairs += [(module, *(f"{module}.lora_{side}.{adapter}.weight" for side in "AB")) for module in modules]
    for module, a, b in pairs:
        out, *inputs = shapes[f"{module}.weight"]
        expected |= {a: (rank, *inputs), b: (out, rank, *[1] * (len(inputs) - 1))}
    trained = _trained(name, [module for module, *_ in pairs])
    expected |= {theirs: shapes[own] for own, theirs in trained.items()}
    Differences(
        missing=[key for key in expected if key not in tensors],
        unexpected=nowhere + [key for key in tensors if key not in expected],
        shapes=[
            f"{key} {tuple(tensors[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in tensors and tuple(tensors[key].shape) != shape
        ],
    ).refuse(path, f"OSEDiff's adapters of the {TITLES[name]}")
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for module, a, b in pairs:
        factors.setdefault(module, []).append((tensors[a], tensors[b]))
    return Adapters(ALPHA / rank, factors, {own: tensors[theirs] for own, theirs in trained.items()})


def _targeted(target: str, shapes: dict[str, Any]) -> list[str]:
    """Modules with a weight that an entry of a list means: peft takes a whole name, or the end of one."""
    modules = [key.removesuffix(".weight") for key in shapes if key.endswith(".weight")]
    return [module for module in modules if module == target or module.endswith(f".{target}")]


def _trained(name: str, adapted: list[str]) -> dict[str, str]:
    """Tensors that were trained themselves: the network's names, and those in the file.

    That is the UNet's first convolution; under an adapter of its own peft calls it ``base_layer``.
    """
    if name != "unet":
        return {}
    theirs = "conv_in.base_layer" if "conv_in" in adapted else "conv_in"
    return {f"conv_in.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
