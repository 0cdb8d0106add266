"""Files of weights, as others write them, to the networks of a teacher.

A file is mapped, not read: what nobody asks for takes no memory. Networks are built on the meta device and get their
weights one by one, each in its final dtype, so that loading takes little more memory than the network itself.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from quantsr.errors import UserError

SHOWN = 3
"""How many names of a kind an error shows."""


def existing_file(path: str | Path, how: str) -> Path:
    """``path``, if there is such a file.

    Args:
        path: of the file; ``~`` is the home folder.
        how: to get it, for the error.

    Raises:
        UserError: there is none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: {how}")
    return path


def read(path: Path) -> Any:
    """What a file holds: a dict of tensors (.safetensors), or whatever was given to ``torch.save``.

    Of a pickle only tensors and plain data are read; objects of other classes, which trainings leave in their
    checkpoints, become empty.

    Raises:
        UserError: the file is damaged or of another kind.
    """
    try:
        return load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} is not a readable file of weights: download it again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, those in its ``state_dict`` if it has one; one without a name is ``tensor``."""
    content = read(path)
    if isinstance(content, Tensor):
        return {"tensor": content}
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def read_embedding(path: Path, like: Tensor) -> Tensor:
    """The only tensor of a file, a prompt embedding, in the dtype of ``like``.

    Raises:
        UserError: there are several tensors, none, or one of another shape than ``like``.
    """
    found = list(read_tensors(path).values())
    if len(found) != 1 or found[0].shape != like.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found[:SHOWN])
        raise UserError(
            f"{path} has to hold one tensor, a prompt embedding {tuple(like.shape)}, but holds {shapes or 'none'}"
        )
    return found[0].to(like.dtype, copy=True)


@dataclass
class Differences:
    """What is wrong with a file: names, each kind to be shown in a row of a table."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)

    def refuse(self, path: Path, what: str) -> None:
        """Raise if anything but :attr:`left_alone` is there.

        Args:
            path: of the file.
            what: it should fit.

        Raises:
            UserError: with the table.
        """
        if not (self.missing or self.unexpected or self.shapes):
            return
        rows = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrong shape": self.shapes,
            "not looked at": self.left_alone,
        }
        table = [_row(title, names) for title, names in rows.items() if names]
        raise UserError("\n".join([f"{path} does not fit {what}:", *table]))


def fill(
    network: nn.Module,
    tensors: dict[str, Tensor],
    path: Path,
    what: str,
    others: Iterable[str] = (),
    prefix: str = "",
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Give a network its weights.

    Args:
        network: with parameters and buffers on the meta device, in their final dtype.
        tensors: all that the file has for the network, by the network's names.
        path: of the file, for errors.
        what: the network is, for errors.
        others: names of what else the file holds, for errors.
        prefix: of the network's names in the file, for errors.
        change: of a tensor, by its name, before it is converted to the network's dtype.

    Raises:
        UserError: names are missing or unexpected, or shapes are others.
    """
    wanted = network.state_dict()
    Differences(
        missing=[prefix + name for name in wanted if name not in tensors],
        unexpected=[prefix + name for name in tensors if name not in wanted],
        shapes=[
            f"{prefix}{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
        left_alone=list(others),
    ).refuse(path, what)

    def converted(name: str, dtype: torch.dtype) -> Tensor:
        value = tensors[name] if change is None else change(name, tensors[name])
        # A copy, not the mapping itself: a model has to outlive changes of its file.
        return value.to(dtype, copy=value is tensors[name])

    network.load_state_dict({name: converted(name, tensor.dtype) for name, tensor in wanted.items()}, assign=True)


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _row(title: str, names: list[str]) -> str:
    """``title  count  the first names``."""
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return f"  {title:13} {len(names):5}   {', '.join([*names[:SHOWN], *more])}"


class _Ignored:
    """Stands in for the classes that a training left in its checkpoint, whose code is not to run."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickle(path: Path) -> Any:
    if not zipfile.is_zipfile(path):  # As torch wrote until 1.6: this cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)
    with safe_globals([(_Ignored, name) for name in get_unsafe_globals_in_checkpoint(path)]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
