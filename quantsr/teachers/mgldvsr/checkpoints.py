"""The files that MGLD-VSR's authors released, as a teacher of full size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.flow import flow_estimator
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.random_weights import fill_random
from quantsr.teachers.weight_files import existing_file, fill, read_embedding, read_tensors, under

FULL_SIZE: dict[str, dict[str, Any]] = {
    "vae": {"base_channels": 128, "channel_multipliers": [1, 2, 4, 4], "blocks_per_level": 2},
    "unet": {
        "base_channels": 320,
        "channel_multipliers": [1, 2, 4, 4],
        "blocks_per_level": 2,
        "attention_levels": [0, 1, 2],
        "head_channels": 64,
        "prompt_channels": 1024,
        "structure_channels": 256,
    },
    "structure": {
        "base_channels": 256,
        "channel_multipliers": [1, 1, 2, 2],
        "blocks_per_level": 2,
        "attention_levels": [0, 1, 2],
        "heads": 4,
        "out_channels": 256,
    },
}
"""The networks of the released files, as arguments of :class:`MGLDVSRTeacher`."""

UNET_PREFIX = "model.diffusion_model."
STRUCTURE_PREFIX = "structcond_stage_model."
GET_RELEASED = "download it by the links in the README of https://github.com/IanYeung/MGLD-VSR (under Testing)"
GET_PROMPT = "empty_context_embedding.pt of https://github.com/libozhu03/PassionSR is such a file"


def architecture(
    unet_file: str | Path | None = None,
    vae_file: str | Path | None = None,
    prompt_file: str | Path | None = None,
    seed: int = 0,
    **config: Any,
) -> MGLDVSRTeacher:
    """The teacher of the arguments of :func:`load_released` or :func:`random_mgldvsr`, whatever its weights are.

    No file is read. Under ``torch.device("meta")`` it takes no memory.

    Args:
        unet_file, vae_file, prompt_file, seed: where weights come from, which makes no difference here.
        config: arguments of :class:`MGLDVSRTeacher`; networks of another size than :data:`FULL_SIZE`.
    """
    return MGLDVSRTeacher(**{**FULL_SIZE, **config})


def random_mgldvsr(seed: int = 0, **config: Any) -> MGLDVSRTeacher:
    """MGLD-VSR with random weights, frozen, made in its own dtype.

    Args:
        seed: of the weights.
        config: arguments of :class:`MGLDVSRTeacher`, ``dtype`` for one; networks of another size than full.
    """
    with torch.device("meta"):
        teacher = architecture(**config)
    fill_random(teacher, seed)
    return teacher.freeze()


def load_released(
    unet_file: str | Path, vae_file: str | Path, prompt_file: str | Path, **config: Any
) -> MGLDVSRTeacher:
    """The teacher that the authors' files hold, frozen.

    What else the files hold is left alone: the text encoder, another autoencoder, schedules, the flow estimator,
    losses, the state of the training.

    Args:
        unet_file: ``mgldvsr_unet.ckpt``, with the denoiser and the structure encoder.
        vae_file: ``video_vae_cfw.ckpt``.
        prompt_file: a file with one tensor, the embedding of the empty prompt, ``(1, tokens, prompt_channels)``:
            (1, 77, 1024) at full size.
        config: arguments of :class:`MGLDVSRTeacher`; networks of another size than :data:`FULL_SIZE`.

    All three may as well be safetensors files with the same names in them.

    Raises:
        UserError: a file that is missing or damaged, or holds something else or another size, those of the guidance's
            flow estimator among them.
    """
    unet_file, vae_file = (existing_file(path, GET_RELEASED) for path in (unet_file, vae_file))
    prompt_file = existing_file(prompt_file, GET_PROMPT)
    with torch.device("meta"):
        teacher = architecture(**config)
    if teacher.flow is not None and teacher.guidance:
        # Sampling would miss its weights only after everything else is loaded.
        flow_estimator(teacher.flow, teacher.flow_weights)
    teacher.prompt_embedding = read_embedding(prompt_file, teacher.prompt_embedding)
    for path, what, prefixes in (
        (unet_file, "the denoiser of MGLD-VSR", {"unet": UNET_PREFIX, "structure": STRUCTURE_PREFIX}),
        (vae_file, "the autoencoder of MGLD-VSR", {"vae": ""}),
    ):
        tensors = read_tensors(path)
        for network, prefix in prefixes.items():
            _fill(getattr(teacher, network), tensors, prefix, path, what)
    return teacher.freeze()


def _fill(network: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path, what: str) -> None:
    """Give a network what the file has under the network's own names."""
    parts = tuple(prefix + name for name, _ in network.named_children())
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(tuple(f"{part}." for part in parts))}
    others = [name for name in tensors if name not in own]
    fill(network, under(own, prefix), path, what, others, prefix)
