"""What crosses the borders between a model's blocks: noted in one model, put in the place of blocks in another.

And what does not: activations inside a block that are computed again when gradients need them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    blocks = [model.get_submodule(name) for name in outputs]
    before = [block.__dict__.get("forward") for block in blocks]
    for block, output in zip(blocks, outputs.values(), strict=True):
        block.forward = give(output)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward  # type: ignore[method-assign]


def checkpoint_gradients(model: nn.Module, blocks: Iterable[str]) -> None:
    """Gradient checkpointing (arXiv 1604.06174): for the backward pass, blocks keep their inputs alone.

    What is inside them is computed again there. Outputs and gradients stay as they are. Between the forward and the
    backward pass nothing that a block computes with may change, its layers' mode included.

    Args:
        model: holds the blocks.
        blocks: by name, none inside another.
    """
    for name in blocks:
        block = model.get_submodule(name)
        block.forward = partial(_checkpointed, block.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


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
