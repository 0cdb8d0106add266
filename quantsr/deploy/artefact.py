"""The artefact: a folder with a calibrated student in packed codes, enough to run it without the teacher.

student.safetensors   codes packed to b bits per weight, scales and zero points, input ranges, transforms, branches, and
                      what was kept in full precision (in 16 bits where that loses nothing)
config.json           the model without weights, what was done to each layer, how it was made, what was measured
README.md             model card
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantsr import __version__
from quantsr.deploy.card import model_card
from quantsr.deploy.pack import pack_bits, unpack_bits
from quantsr.errors import UserError
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.prepare import Swap, apply_swap
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import teacher_without_weights

WEIGHTS, CONFIG = "student.safetensors", "config.json"
FORMAT = 2


def save_student(
    student: Teacher, swaps: list[Swap], folder: str | Path, full_size: int, about: dict[str, Any]
) -> dict[str, int]:
    """Write a calibrated student to ``folder``.

    Args:
        student: its layers in their inference form (:func:`quantsr.quant.folded.fold`).
        swaps: what :func:`prepare` did to it.
        folder: replaced if it exists; it appears when it is complete.
        full_size: number of the teacher's parameters.
        about: how the student was made and what was measured; goes into config.json and the model card.

    Returns:
        Sizes in bytes: ``artefact`` (the weight file) and ``fp32`` (the teacher's parameters in float32).
    """
    folder = Path(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    recipes = list(dict.fromkeys(swap.recipe for swap in swaps if swap.recipe is not None))
    save_file(_tensors(student), unfinished / WEIGHTS)
    sizes = {"artefact": (unfinished / WEIGHTS).stat().st_size, "fp32": 4 * full_size}
    config = {
        "format": FORMAT,
        "quantsr": __version__,
        "model": {"kind": student.kind, **student.config},
        "recipes": [{"kind": type(recipe).__name__, **asdict(recipe)} for recipe in recipes],
        "modules": {_key(s): recipes.index(s.recipe) for s in swaps if s.recipe is not None},
        "bytes": sizes,
        **about,
    }
    (unfinished / CONFIG).write_text(json.dumps(config, indent=1))
    (unfinished / "README.md").write_text(model_card(config))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return sizes


def load_student(folder: str | Path) -> Teacher:
    """The student of an artefact folder, or of the run folder that holds one: ``student(lq)`` super-resolves.

    Its outputs are bit for bit those of the student that was saved. It is built on the meta device and takes over the
    file's tensors: nothing is drawn, and no weight is in memory twice.

    Raises:
        UserError: no artefact there, a damaged one, or one of a newer format.
    """
    config = read_config(folder)
    student = teacher_without_weights(**config["model"])
    tensors = _read_weights(artefact_folder(folder) / WEIGHTS)
    recipes = [_recipe(entry) for entry in config["recipes"]]
    with torch.device("meta"):
        for key, number in config["modules"].items():
            name, _, kind = key.partition(":")
            _place(student, Swap(name, kind, "", recipes[number]))
    try:
        found = _unpacked(student, tensors)
        missing, unexpected = student.load_state_dict(found, strict=False, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:  # Of other names, of other widths, of other shapes.
        raise UserError(f"{folder} does not fit its own configuration: {error}") from error
    if missing or unexpected:
        raise UserError(
            f"{folder} does not fit its own configuration: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    return student.freeze()


def _unpacked(student: Teacher, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a file holds as ``student`` has it: codes one by one, the rest in its dtype.

    All of it is copied: a student has to outlive changes of its file, which is mapped.
    """
    own = student.state_dict()
    layers = {f"{name}.codes": layer for name, layer in student.named_modules() if isinstance(layer, FoldedLayer)}

    def converted(name: str, tensor: Tensor) -> Tensor:
        if (layer := layers.get(name)) is not None:
            return unpack_bits(tensor, layer.recipe.weight.bits, layer.codes.shape)
        return tensor.to(own[name].dtype, copy=True) if name in own else tensor

    return {name: converted(name, tensor) for name, tensor in tensors.items()}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of an artefact folder (or of the run folder that holds one).

    Raises:
        UserError: no artefact there, or one of a newer format.
    """
    path = artefact_folder(folder) / CONFIG
    if not path.is_file():
        raise UserError(
            f"no artefact in {folder}: it needs {CONFIG} and {WEIGHTS}, as train.py writes them to RUN/artefact"
        )
    try:
        config = json.loads(path.read_text())
        found = config["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not the configuration of an artefact ({type(error).__name__})") from error
    if found != FORMAT:
        remedy = "install a newer one" if found > FORMAT else "make it again from the run's checkpoint or by train.py"
        raise UserError(f"{folder} has artefact format {found}, this quantsr reads {FORMAT}: {remedy}")
    return config


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of an artefact's weight file.

    Raises:
        UserError: it is not there.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the artefact's {name} cannot be read from {path} ({error})") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the artefact's weights cannot be read from {path} ({error})") from error


def artefact_folder(folder: str | Path) -> Path:
    """``folder`` itself or the ``artefact`` in it."""
    folder = Path(folder).expanduser()
    return folder / "artefact" if (folder / "artefact" / CONFIG).is_file() else folder


def _place(student: nn.Module, swap: Swap) -> None:
    """Put the empty inference form of one module into ``student``, on the meta device."""
    if isinstance(swap.recipe, LayerRecipe):
        module: Any = student.get_submodule(swap.name)
        shape, has_bias = module.weight.shape, module.bias is not None
        student.set_submodule(swap.name, FoldedLayer(Operation.of(module), shape, swap.recipe, has_bias))
    else:
        apply_swap(student, swap, seed=0)


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    """Everything to store, by name."""
    tensors = dict(student.state_dict())
    for name, layer in student.named_modules():
        if isinstance(layer, FoldedLayer):
            tensors[f"{name}.codes"] = pack_bits(layer.codes, layer.recipe.weight.bits)
    return {name: _shortest(tensor) for name, tensor in tensors.items()}


def _shortest(tensor: Tensor) -> Tensor:
    """In 16 bits where that loses nothing (the packaged teacher's weights come from 16 bits), else as it is."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half()
    return tensor.clone()


def _key(swap: Swap) -> str:
    """An attention module and a layer may not share a name, but a key says what it is all the same."""
    return f"{swap.name}:{swap.kind}"


def _recipe(entry: dict[str, Any]) -> LayerRecipe | AttentionRecipe:
    """A recipe from its JSON."""
    entry = dict(entry)
    kind = {"LayerRecipe": LayerRecipe, "AttentionRecipe": AttentionRecipe}[entry.pop("kind")]
    specs = {key: AffineSpec(**entry[key]) for key in ("weight", "act") if key in entry}
    return kind(**{**entry, **specs})
