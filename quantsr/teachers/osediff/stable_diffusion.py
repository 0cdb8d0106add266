"""The weights of Stable Diffusion 2.1-base, wherever they are, under the names of diffusers' networks.

A source is a folder in diffusers' layout, one file in the original naming, or the id of a repository on the Hugging
Face hub in diffusers' layout.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, ModelMixin
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from quantsr.errors import UserError
from quantsr.teachers.weight_files import read_tensors

NAMES = [f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin", "fp16.safetensors", "fp16.bin")]
"""What diffusers calls a network's file, the best first."""

SCHEDULE = "scheduler/scheduler_config.json"
"""Where diffusers' layout says what a model predicts."""

LOCAL = "a local folder in diffusers' layout (with unet/ and vae/) or one .safetensors or .ckpt file"

TITLES = {"unet": "UNet", "vae": "VAE"}

ORIGINAL = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
"""What names of the networks begin with in the original naming; EMA, text encoder and schedules are beside them."""


@dataclass(frozen=True)
class NetworkWeights:
    """What a file has for one network.

    Attributes:
        tensors: under the names of diffusers.
        path: of the file.
        others: what else it holds.
    """

    tensors: dict[str, Tensor]
    path: Path
    others: list[str]


def find_files(source: str | Path) -> dict[str, Path]:
    """The files with the weights of ``unet`` and ``vae``; those of a hub repository are downloaded once.

    Raises:
        UserError: there are none, or those of a model that does not predict epsilon.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return dict.fromkeys(ORIGINAL, path)
    if path.is_dir():
        check_prediction(path, path / SCHEDULE)
        return {name: _in_folder(path / name) for name in ORIGINAL}
    if is_hub_id(source):
        check_prediction(source, _schedule_from_hub(str(source)))  # Before gigabytes are downloaded.
        return {name: _from_hub(str(source), name) for name in ORIGINAL}
    raise UserError(
        f"there is no Stable Diffusion at {path}: give {LOCAL}, or the id of a repository on the Hugging Face hub"
    )


def check_prediction(source: str | Path, schedule: Path | None) -> None:
    """Refuse a model whose schedule says that it predicts something else than epsilon, with a UserError.

    Stable Diffusion 2.1 for 768 pixels has the same names and shapes, and predicts v; a single file does not say so.

    Args:
        source: of the model, for the error.
        schedule: the file with its schedule's configuration; where there is none, nothing is refused.
    """
    known = schedule is not None and schedule.is_file()
    predicts = json.loads(schedule.read_text()).get("prediction_type", "epsilon") if known else "epsilon"
    if predicts != "epsilon":
        raise UserError(
            f"the model in {source} predicts {predicts} ({SCHEDULE}), OSEDiff is made of one that predicts epsilon: "
            "give stable-diffusion-2-1-base"
        )


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` is written as ``owner/name`` and is nothing on this machine."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source))) and not Path(source).expanduser().exists()


def network_weights(name: str, path: Path, network: ModelMixin) -> NetworkWeights:
    """What a file has for ``network``.

    Args:
        name: ``unet`` or ``vae``.
        path: one of :func:`find_files`.
        network: to tell how the original names translate; a part that has its own file has diffusers' names.
    """
    tensors, prefix = read_tensors(path), ORIGINAL[name]
    if not any(key.startswith(tuple(ORIGINAL.values())) for key in tensors):
        return NetworkWeights(_current_names(tensors, network), path, [])
    own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    convert = convert_ldm_vae_checkpoint if isinstance(network, AutoencoderKL) else convert_ldm_unet_checkpoint
    converted = convert(own, dict(network.config)) if own else {}
    return NetworkWeights(converted, path, [key for key in tensors if key not in own])


def _in_folder(folder: Path) -> Path:
    """The file of a network in its own folder."""
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {NAMES[0]} (or .bin, .fp16.safetensors, .fp16.bin): download that folder again")


def _from_hub(repository: str, network: str) -> Path:
    """The file of a network, out of the hub's cache or downloaded to it."""
    from huggingface_hub import hf_hub_download  # Imported where it is needed: it is slow to load.
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    reason: Exception | None = None
    for name in NAMES:
        try:
            return Path(hf_hub_download(repository, f"{network}/{name}"))
        except LocalEntryNotFoundError as error:  # Not in the cache, and the hub was not asked or did not answer.
            reason = reason or error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = error
            break
    why = f" ({str(reason).splitlines()[0]})" if reason else ""
    raise UserError(
        f"{repository} is neither a file nor a folder here, and {network}/{NAMES[0]} of that name could not be had "
        f"from the Hugging Face hub{why}: give {LOCAL}"
    )


def _schedule_from_hub(repository: str) -> Path | None:
    """The file of a repository's schedule; None if it cannot be had: what is wrong, the networks' files tell."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(repository, SCHEDULE))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def _current_names(tensors: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
    """diffusers' names of today: Stable Diffusion's own VAE files have older ones for its attention."""
    older = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    known = network.state_dict().keys()

    def current(name: str) -> str:
        module, _, kind = name.rpartition(".")
        parent, _, layer = module.rpartition(".")
        renamed = f"{parent}.{older.get(layer, layer)}.{kind}"
        return renamed if name not in known and renamed in known else name

    return {current(name): tensor for name, tensor in tensors.items()}
