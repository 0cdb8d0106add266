"""Bars for what takes long: the files or frames of a call, and the tiles of the image at hand."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import get_console
from rich.progress import Progress
from torch import nn

from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher

T = TypeVar("T")


class Bars:
    """A context in which bars are drawn on a terminal or in a notebook, and taken away again at its end.

    Args:
        shown: whether they are wanted.
    """

    def __init__(self, shown: bool = True):
        console = get_console()
        self.shown = shown and (console.is_interactive or console.is_jupyter)
        self.progress = Progress(console=console, transient=True, disable=not self.shown)

    def __enter__(self) -> "Bars":
        if self.shown:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:  # Elsewhere an empty line would be printed.
            self.progress.stop()

    def over(self, items: Iterable[T], what: str, count: int) -> Iterator[T]:
        """``items``, counted as they pass; their number is known before."""
        task = self.progress.add_task(what, total=count)
        for item in items:
            yield item
            self.progress.advance(task)

    @contextmanager
    def tiles(self, model: Teacher, images: int, height: int, width: int) -> Iterator[None]:
        """Within, a bar counts the tiles of a batch of images, where the model takes them in tiles.

        Args:
            model: that is called once within.
            images: in the batch.
            height, width: of the input.
        """
        count = model.tiles(model.scale * height, model.scale * width) if isinstance(model, OneStepTeacher) else 0
        if count <= len(getattr(model, "networks", ())):  # One tile is the image.
            yield
            return
        task = self.progress.add_task("tiles", total=count)

        def counted(_: nn.Module, inputs: tuple, output: object) -> None:
            self.progress.advance(task, len(inputs[0]) / images)

        hooks = [network.register_forward_hook(counted) for network in model.networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.progress.remove_task(task)
