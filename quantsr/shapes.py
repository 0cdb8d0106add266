"""What a run would do, at full size and without a file: on the ``meta`` device tensors are shapes alone."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from quantsr.methods.base import StagedModule
from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.metrics.cost import FULL, cost, part_of
from quantsr.quant.calibrate import mode
from quantsr.quant.prepare import is_layer
from quantsr.teachers.base import Teacher
from quantsr.terminal import wide_console

ADAM = 3  # Gradient and two moments of every parameter that trains.


def show_shapes(method: StagedModule, batch: int, crop: int, title: str) -> None:
    """Run teacher and student once without weights, and print the page of a dry run.

    Args:
        method: of a teacher on the ``meta`` device.
        batch: samples of a calibration batch.
        crop: side of its crops in high-resolution pixels.
        title: first line of the page.

    Raises:
        ValueError: the student's tensors have other shapes than the teacher's.
    """
    teacher = method.teacher
    frames = (teacher.frames,) if teacher.frames > 1 else ()
    lq = torch.empty(batch, *frames, 3, crop // teacher.scale, crop // teacher.scale, device="meta")
    shapes = tensor_shapes(teacher, lq)
    tables = [teacher_table(teacher), shape_table(shapes)]
    if isinstance(method, QuantizationMethod):
        if method.sized_by_data:
            method.allocate_scales(lq)
        with mode(method.student, "quantized"):
            own = tensor_shapes(method.student, lq)
        if own != shapes:
            raise ValueError(f"the student's tensors are {own}, the teacher's {shapes}")
        tables += [layer_table(method), cost_table(method, (1, *lq.shape[1:]))]
    tables += [plan_table(method.plan), memory_table(method)]
    print_page(title, tables)


@torch.no_grad()
def tensor_shapes(model: Teacher, lq: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of what a model makes of ``lq`` on its way, with one denoising step."""
    latent = model.encode(lq)
    epsilon = model.denoise(latent)
    clean = model.clean(latent, epsilon)
    found = {"lq": lq, "latent z_L": latent, "epsilon": epsilon, "latent z_H": clean, "sr": model.render(clean, lq)}
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


# The tables.


def teacher_table(teacher: Teacher) -> Table:
    """Parameters by part."""
    size: Counter[str] = Counter()
    for name, parameter in teacher.named_parameters():
        size[part_of(teacher, name)] += parameter.numel()
    frames = "single images" if teacher.frames == 1 else f"segments of {teacher.frames} frames"
    steps = "one denoising step" if teacher.steps == 1 else f"{teacher.steps} denoising steps"
    table = table_of(f"teacher: {teacher.kind}, {frames}, x{teacher.scale}, {steps}", ["part"], ["parameters"])
    for part, n in size.items():
        table.add_row(part, millions(n))
    table.add_row("all", millions(size.total()))
    return table


def shape_table(shapes: dict[str, tuple[int, ...]]) -> Table:
    """Tensors of a calibration batch."""
    table = table_of("a calibration batch, in teacher and student", ["tensor", "shape"])
    for name, shape in shapes.items():
        table.add_row(name, " x ".join(map(str, shape)))
    return table


def layer_table(method: QuantizationMethod) -> Table:
    """What became of the layers, and of the products of attention, by part and recipe."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    weights: Counter[tuple[str, str, str]] = Counter()
    for swap in method.swaps:
        module = method.teacher.get_submodule(swap.name)
        part = part_of(method.teacher, swap.name)
        key = part, "layers" if is_layer(module) else "products", str(swap.recipe or "kept in full precision")
        kinds[key] += 1
        weights[key] += module.weight.numel() if is_layer(module) else 0
    table = table_of("student", ["part", "what", "recipe"], ["number", "weights"])
    for key, number in kinds.items():
        table.add_row(*key, str(number), millions(weights[key]) if weights[key] else "")
    return table


def cost_table(method: QuantizationMethod, shape: tuple[int, ...]) -> Table:
    """Shares that the student does without, as the papers count."""
    found = cost(method.student, method.teacher, shape)
    table = table_of("saved, as papers count", ["of"], ["parameters", "operations"])
    for part in ("denoiser", None):
        shares = (found.parameters_saved(part), found.operations_saved(part))
        table.add_row(part or "all", *(f"{100 * share:.2f} %" for share in shares))
    table.add_row("stored, all of it", f"{found.bits() / 8e6:.0f} MB", "")
    table.add_row("teacher", f"{FULL * sum(found.parameters.values()) / 8e6:.0f} MB", "")
    return table


def plan_table(stages: Sequence[Stage]) -> Table:
    """A row a stage; neighbours of one kind, such as those of QArtSR's modules, share one."""
    table = table_of(
        f"plan: {sum(stage.steps for stage in stages)} steps",
        ["stage", "optimizer", "learning rates", "schedule"],
        ["stages", "steps each", "trained"],
    )
    for _, run in groupby(stages, key=lambda stage: (stage.name.partition(" ")[0], stage.steps, rates(stage))):
        same = list(run)
        first, last = same[0], same[-1]
        name = first.name if len(same) == 1 else f"{first.name} ... {last.name.partition(' ')[2]}"
        sizes = list(dict.fromkeys(millions(trained(stage)) for stage in (first, last)))
        how = (name_of(first.optimizer), rates(first), name_of(first.schedule)) if first.parameters else ("", "", "")
        amount = " ... ".join(sizes) if first.parameters else "nothing"
        table.add_row(name, *how, str(len(same)), str(first.steps), amount)
    return table


def memory_table(method: StagedModule) -> Table:
    """Bytes of what a run holds; quantized weights and what passes through the model come on top."""
    shared = {id(t): t for t in [*method.teacher.parameters(), *method.teacher.buffers()]}
    own = {id(t): t for t in [*method.model.parameters(), *method.model.buffers()] if id(t) not in shared}
    largest = max(map(trained, method.plan), default=0)
    table = table_of("memory of parameters, without activations", ["of"], ["GB"])
    table.add_row("teacher, which the student shares", gigabytes(shared.values()))
    table.add_row("student's own", gigabytes(own.values()))
    table.add_row("gradients and moments in the largest stage", f"{ADAM * 4 * largest / 1e9:.2f}")
    return table


# Their cells.


def table_of(title: str, words: Sequence[str], figures: Sequence[str] = ()) -> Table:
    """A table without lines, figures on the right."""
    table = Table(box=None, pad_edge=False, title=title)
    for column in words:
        table.add_column(column, no_wrap=True)
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def trained(stage: Stage) -> int:
    """Number of values that a stage trains."""
    return sum(parameter.numel() for parameter in stage.parameters)


def rates(stage: Stage) -> str:
    """Learning rates of its groups."""
    values = dict.fromkeys(f"{group.lr:g}" for group in stage.groups if group.parameters)
    return ", ".join(values) + (" x size" if stage.relative else "")


def name_of(function: Callable[..., Any]) -> str:
    """Name of a class or function, and the options that a partial gives it."""
    if isinstance(function, partial):
        options = ", ".join(f"{key} {value}" for key, value in function.keywords.items())
        return f"{name_of(function.func)} ({options})"
    return function.__name__.replace("_", " ")


def millions(n: int) -> str:
    """A number of parameters: ``865.91 M``."""
    return f"{n / 1e6:.2f} M"


def gigabytes(tensors: Iterable[Tensor]) -> str:
    """Size of tensors in 10^9 bytes."""
    return f"{sum(t.nbytes for t in tensors) / 1e9:.2f}"


def print_page(title: str, tables: Sequence[Table]) -> None:
    """Tables below each other, each under its title; nothing is cut where the terminal is narrower than a table."""
    console = wide_console(*tables)
    console.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
    for table in tables:
        console.print(f"\n{table.title}", style="italic", highlight=False, markup=False, soft_wrap=True)
        table.title = None
        console.print(table, highlight=False)
