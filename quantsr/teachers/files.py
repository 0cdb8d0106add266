"""Teacher files: one safetensors file that holds the weights and, in its metadata, everything to build the model."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quantsr.errors import UserError
from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher
from quantsr.teachers.one_step import OneStepTeacher
from quantsr.teachers.weight_files import fill

PACKAGED = Path(__file__).parent / "weights"
KINDS: dict[str, type[Teacher]] = {teacher.kind: teacher for teacher in (OneStepTeacher, MGLDVSRTeacher)}


def save_teacher(teacher: Teacher, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write ``teacher`` to ``path``; weights are stored as ``dtype``: by default in 16 bits, its own or float16."""
    dtype = dtype or (teacher.dtype if teacher.dtype.itemsize == 2 else torch.float16)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in teacher.state_dict().items()}
    path = Path(path)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={teacher.kind: json.dumps(teacher.config)})
    unfinished.replace(path)


def load_teacher(weights: str | Path) -> Teacher:
    """Build the teacher that a file holds, in its own data type, frozen.

    Args:
        weights: name of a packaged teacher (``tiny_image``) or path of a file that :func:`save_teacher` wrote.

    Raises:
        UserError: no such file, or it holds no teacher.
    """
    packaged = PACKAGED / f"{weights}.safetensors"
    path = packaged if packaged.is_file() else Path(weights).expanduser()
    if not path.is_file():
        names = sorted(p.stem for p in PACKAGED.glob("*.safetensors"))
        raise UserError(
            f"no teacher weights at {path}: give one of the packaged {names} or the path of a .safetensors file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from error
    kind = next((kind for kind in KINDS if kind in metadata), None)
    if kind is None:
        raise UserError(f"{path} was not written by quantsr: its metadata has no teacher configuration")
    teacher = teacher_without_weights(kind, **json.loads(metadata[kind]))
    fill(teacher, tensors, path, f"the {kind} teacher that its metadata describes")
    return teacher.freeze()


def teacher_without_weights(kind: str = "one_step", **config: Any) -> Teacher:
    """A teacher whose parameters and buffers are on the meta device, where they take no memory: to be filled.

    Constants that follow from the arguments, which are in no file, have their values.

    Args:
        kind, config: as :func:`build_teacher` takes them.

    Raises:
        UserError: another kind.
    """
    with torch.device("meta"):
        return _class_of(kind)(**config)


def build_teacher(seed: int = 0, kind: str = "one_step", **config: Any) -> Teacher:
    """A teacher with random weights drawn from ``seed``: what ``method=teacher`` starts from.

    The denoiser's last convolution starts at zero, as in latent diffusion's own code: epsilon is 0 at first.

    Args:
        seed: of the weights.
        kind: ``one_step`` (images, :class:`OneStepTeacher`) or ``mgldvsr`` (clips, :class:`MGLDVSRTeacher`).
        config: arguments of that class.

    Raises:
        UserError: another kind.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = _class_of(kind)(**config)
    exit_layer = teacher.get_submodule(teacher.exit)
    torch.nn.init.zeros_(exit_layer.weight)
    torch.nn.init.zeros_(exit_layer.bias)
    return teacher


def _class_of(kind: str) -> type[Teacher]:
    if kind not in KINDS:
        raise UserError(f"teacher.kind takes one of {list(KINDS)}, not {kind!r}")
    return KINDS[kind]


def fingerprint(teacher: Teacher) -> str:
    """A short hash of a teacher's weights: another one for other weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def new_one_step(seed: int = 0, **config: Any) -> OneStepTeacher:
    """A random image teacher, see :func:`build_teacher`."""
    return build_teacher(seed, OneStepTeacher.kind, **config)


def new_mgldvsr(seed: int = 0, **config: Any) -> MGLDVSRTeacher:
    """A random video teacher, see :func:`build_teacher`."""
    return build_teacher(seed, MGLDVSRTeacher.kind, **config)
