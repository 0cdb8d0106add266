"""The files that MGLD-VSR's authors released, as a teacher of full size."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from quantsr.errors import UserError
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.mgldvsr.schedule import RespacedSchedule
from quantsr.teachers.random_weights import fill_random

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
    teacher = _without_weights(**config)
    fill_random(teacher, seed)
    return teacher.freeze()


def load_released(
    unet_file: str | Path, vae_file: str | Path, prompt_file: str | Path, **config: Any
) -> MGLDVSRTeacher:
    """The teacher that the authors' files hold, in float32, frozen.

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
        UserError: a file that is missing or damaged, or holds something else or another size.
    """
    teacher = _without_weights(**config)
    weights = _read(unet_file)
    _fill(teacher.unet, weights, UNET_PREFIX, unet_file)
    _fill(teacher.structure, weights, STRUCTURE_PREFIX, unet_file)
    _fill(teacher.vae, _read(vae_file), "", vae_file)
    teacher.prompt_embedding = _prompt(prompt_file, teacher.prompt_embedding.shape)
    return teacher.freeze()


def _without_weights(**config: Any) -> MGLDVSRTeacher:
    """The teacher on the meta device, but for the schedule, which is in no file: it follows from the arguments."""
    with torch.device("meta"):
        teacher = architecture(**config)
    teacher.schedule = RespacedSchedule(*(teacher.config[name] for name in ("steps", "start", "schedule")))
    return teacher


def _fill(module: nn.Module, weights: dict[str, Tensor], prefix: str, path: str | Path) -> None:
    """Let the weights under ``prefix`` be those of ``module``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [prefix + name for name in shapes if prefix + name not in weights]
    if missing:
        raise UserError(
            f"{path} is not the file that the MGLD-VSR teacher needs here: "
            f"it lacks {', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
        )
    for name, shape in shapes.items():
        found = tuple(weights[prefix + name].shape)
        if found != shape:
            raise UserError(
                f"{path} is of another size than the teacher: {prefix + name} has the shape {found}, not {shape}"
            )
    module.load_state_dict({name: weights[prefix + name].float() for name in shapes}, assign=True)


def _prompt(path: str | Path, shape: torch.Size) -> Tensor:
    found = list(_read(path).values())
    if len(found) != 1 or found[0].shape != shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found[:3])
        raise UserError(
            f"{path} has to hold one tensor, a prompt embedding {tuple(shape)}, but holds {shapes or 'none'}"
        )
    return found[0].float()


def _read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name; one without a name is called ``tensor``."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: download what MGLD-VSR's authors released and give its path")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable file of weights: download it again") from error
    if isinstance(content, Tensor):
        return {"tensor": content}
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


class _Ignored:
    """Stands in for the classes that a training left in its checkpoint, whose code is not to run."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickle(path: Path) -> Any:
    with safe_globals([(_Ignored, name) for name in get_unsafe_globals_in_checkpoint(path)]):
        # Mapped: the parts that nobody asks for take no memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
