"""What crosses the borders between a model's blocks: noted in one model, put in the place of blocks in another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Outputs = dict[str, Any]


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


def tensor_of(output: Any) -> Tensor:
    """A block's output as the tensor that it is: attention blocks of diffusers wrap theirs in a tuple."""
    return output[0] if isinstance(output, tuple) else output
