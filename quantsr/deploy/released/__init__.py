"""Students that the methods' authors calibrated and released, as students of this project.

Both formats hold what was calibrated and no weights: those are the teacher's, which has to be the one that the authors
started from. :mod:`.passionsr` and :mod:`.quantvsr` say what their files hold.
"""

from collections.abc import Sequence
from pathlib import Path

from quantsr.deploy.released.passionsr import PassionSRFile, is_passionsr
from quantsr.deploy.released.quantvsr import QuantVSRFile, is_quantvsr
from quantsr.errors import UserError
from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.prepare import Swap, is_attention
from quantsr.quant.spec import Bits
from quantsr.teachers.base import Teacher
from quantsr.teachers.files import load_teacher
from quantsr.teachers.weight_files import existing_file, read


def import_checkpoint(
    paths: str | Path | Sequence[str | Path], teacher: Teacher | str | Path, bits: Bits | str
) -> Teacher:
    """The student that released files describe, in its inference form, frozen; it reproduces the authors' layers.

    Args:
        paths: of the files: PassionSR's ``unet_ckpt_merge_saw_sep.pth`` and, where the VAE is quantized too,
            ``vae_ckpt_merge_saw_sep.pth``; QuantVSR's ``w4a4.pth``. In any order.
        teacher: whose weights the authors quantized, or its file; it stays as it is, the student shares what is not
            quantized.
        bits: the widths, as ``w6a6``: no file holds them.

    Raises:
        UserError: a file that cannot be read, is of another kind, or does not fit the teacher; two files of one part.
        ValueError: widths that cannot be.
    """
    files = existing_files(paths)
    teacher = teacher if isinstance(teacher, Teacher) else load_teacher(teacher)
    bits = bits if isinstance(bits, Bits) else Bits.parse(bits)
    parts: dict[str, PassionSRFile | QuantVSRFile] = {}
    for path in files:
        file = _file(path, teacher)
        if file.part in parts:
            raise UserError(f"{path} and {parts[file.part].path} both hold the {file.part}: give one of them")
        file.check()
        parts[file.part] = file
    student = teacher.twin()
    for file in parts.values():
        file.fill(student, bits)
    return student.freeze()


def existing_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The paths of files, of one or of several.

    Raises:
        UserError: there is none, or none at a path.
    """
    how = "give the path of what PassionSR's or QuantVSR's authors released"
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    if not files:
        raise UserError(f"no file to import: {how}")
    return [existing_file(path, how) for path in files]


def _file(path: Path, teacher: Teacher) -> PassionSRFile | QuantVSRFile:
    content = read(path)
    if is_passionsr(content):
        return PassionSRFile(path, content, teacher)
    if is_quantvsr(content):
        return QuantVSRFile(path, content, teacher)
    raise UserError(
        f"{path} holds neither a student of PassionSR (a state dict, names that end in scale_factor) "
        "nor one of QuantVSR (layers with stca.L1)"
    )


def swaps_of(student: Teacher) -> list[Swap]:
    """What is quantized in a student in its inference form, for :func:`quantsr.deploy.artefact.save_student`."""
    swaps = []
    for name, module in student.named_modules():
        if isinstance(module, FoldedLayer):
            swaps.append(Swap(name, module.operation.kind, name, module.recipe))
        elif is_attention(module) and isinstance(module.processor, QuantizedAttention):
            swaps.append(Swap(name, type(module).__name__, name, module.processor.recipe))
    return swaps
