"""What crosses the borders between a model's blocks: noted in one model, put in the place of blocks in another."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Outputs = dict[str, Any]


class Call(NamedTuple):
    """What a block is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, model: nn.Module, block: str) -> Tensor:
        """What a block of a model answers to it."""
        return tensor_of(model.get_submodule(block)(*self.args, **self.kwargs))


@contextmanager
def recorded(model: nn.Module, blocks: Iterable[str]) -> Iterator[Outputs]:
    """Note the outputs of some blocks, by name, while the model runs. A block that runs twice keeps its last output."""
    outputs: Outputs = {}

    def note(name: str):
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(model: nn.Module, outputs: Outputs) -> Iterator[None]:
    """Blocks give these outputs without computing anything: no time, and nothing of them in the autograd graph."""

    def give(output: Any):
        return lambda *args, **kwargs: output

    blocks = [(model.get_submodule(name), output) for name, output in outputs.items()]
    for block, output in blocks:
        block.forward = give(output)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block, _ in blocks:
            del block.forward


class _Reached(Exception):
    """The block that a model runs up to has been reached."""


@torch.no_grad()
def call_of(model: nn.Module, block: str, run: Callable[[], Any]) -> Call:
    """What a block is called with when the model runs, without gradient.

    Neither the block nor anything after it is computed. A block that would run twice gives its first call.

    Args:
        model: holds the block.
        block: its name.
        run: makes the model run.

    Raises:
        ValueError: the model never comes to the block.
    """
    calls: list[Call] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(args, kwargs))
        raise _Reached

    handle = model.get_submodule(block).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run()
    except _Reached:
        return calls[0]
    finally:
        handle.remove()
    raise ValueError(f"{block} does not run")


def tensor_of(output: Any) -> Tensor:
    """A block's output as the tensor that it is: attention blocks of diffusers wrap theirs in a tuple."""
    return output[0] if isinstance(output, tuple) else output
