"""Modules of Stable Diffusion under their original names and under diffusers'."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

CONVERTERS = {
    "unet": ("model.diffusion_model.", convert_ldm_unet_checkpoint),
    "vae": ("first_stage_model.", convert_ldm_vae_checkpoint),
}


class _Name(str):
    """The original name of a module, which passes for a tensor in diffusers' converters."""

    shape = ()
    ndim = 0


def diffusers_names(network: str, modules: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Original names to diffusers' names.

    Args:
        network: ``unet`` or ``vae``.
        modules: original names; what is no module of such a network is left out of the answer.
        config: of the diffusers model.
    """
    prefix, convert = CONVERTERS[network]
    entries = {f"{prefix}{module}.{leaf}": _Name(module) for module in modules for leaf in ("weight", "bias")}
    converted = convert(entries, config)
    return {str(original): name.rpartition(".")[0] for name, original in converted.items() if original is not None}
