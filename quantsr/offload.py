"""``offload=true``: while a part of a model (encoder, denoiser, decoder) does not run, its weights wait elsewhere.

They wait in host memory when the model runs on a GPU, and on a disk when it runs on a CPU. A part is fetched when the
first of its layers runs. It stays while it is the last that ran, and until :meth:`Offload.backward_is_over` if a
backward pass comes back to it; the next part that is fetched sends it away, and the quantized weights that its layers
made of theirs with it. Nothing that is computed changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.homes import DiskFile, Home, HostMemory
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.layer import QuantizedLayer
from quantsr.teachers.base import Teacher

SMALLEST = 1024
"""Bytes of a tensor below which it stays where it is."""


class Offload:
    """Parks the weights of models with the same parts; a teacher and its student share most of theirs.

    Args:
        models: whose parts run one after the other.
        tensors: what may wait; nothing writes to it meanwhile. The rest of the models stays where it is.
        device: where they run. All tensors are there now.
        home: where parts wait; None for host memory, or a disk if the device is a CPU.
    """

    def __init__(
        self,
        models: Sequence[Teacher],
        tensors: Iterable[Tensor],
        device: torch.device,
        home: type[Home] | None = None,
    ):
        home = home or (DiskFile if device.type == "cpu" else HostMemory)
        self.device = device
        self.present: set[str] = set()
        """Parts that are on the device."""
        self.held: set[str] = set()
        """Those that a backward pass will come back to."""
        movable = {id(t): t for t in tensors if t.nbytes >= SMALLEST and t.is_contiguous()}
        self._modules: dict[str, list[nn.Module]] = {}
        self._tensors: dict[str, list[Tensor]] = {}
        self._homes: dict[str, Home] = {}
        self._handles = []
        for part, prefixes in models[0].parts().items():
            owners = [model.get_submodule(prefix) for model in models for prefix in prefixes]
            modules = self._modules[part] = [module for owner in owners for module in owner.modules()]
            users = [(module, ids) for module in modules if (ids := _own(module) & movable.keys())]
            found = dict.fromkeys(key for _, ids in users for key in ids)
            if not found:
                continue
            self._handles += [
                module.register_forward_pre_hook(partial(self._before, part), with_kwargs=True) for module, _ in users
            ]
            self._tensors[part] = [movable.pop(key) for key in found]
            self._homes[part] = home(self._tensors[part])
            self.release(part)

    @property
    def nbytes(self) -> dict[str, int]:
        """Of what each part has waiting or fetched."""
        return {part: home.nbytes for part, home in self._homes.items()}

    def fetch(self, part: str) -> None:
        """Have a part on the device, and of the others only those that are held; they go first."""
        for other in self.present - self.held - {part}:
            self.release(other)
        if part not in self.present:
            self._bring(part)

    def release(self, part: str) -> None:
        """Drop the copy of a part, and what its layers keep of quantized weights."""
        self._set(part, self._homes[part].waiting)
        for module in self._modules[part]:
            if isinstance(module, QuantizedLayer | FoldedLayer):
                module.drop_cache()
        self.present.discard(part)

    def backward_is_over(self) -> None:
        """Hold no part any longer."""
        self.held.clear()

    @contextmanager
    def everything(self) -> Iterator[None]:
        """Within, weights can be computed with in any order, not only where layers run.

        A file on a disk is read where it is, so that nothing is fetched from there.
        """
        for part, home in self._homes.items():
            if not home.computable and part not in self.present:
                self._bring(part)
        yield

    def close(self) -> None:
        """Put everything back on the device, each tensor in memory of its own, and give up the homes."""
        for handle in self._handles:
            handle.remove()
        for part, home in self._homes.items():
            with torch.inference_mode(False):
                self._set(part, [copy.clone() for copy in home.copies(self.device)])
        self._homes, self._tensors, self._handles = {}, {}, []
        self.present, self.held = set(), set()

    def _bring(self, part: str) -> None:
        with torch.inference_mode(False):  # What a validation fetches, training must be able to use.
            self._set(part, self._homes[part].copies(self.device))
        self.present.add(part)

    def _set(self, part: str, values: Sequence[Tensor]) -> None:
        """The same parameters and buffers, which optimizers and both models know, with their values elsewhere."""
        for tensor, value in zip(self._tensors[part], values, strict=True):
            tensor.data = value

    def _before(self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A layer of a part is about to run."""
        self.fetch(part)
        if part not in self.held and torch.is_grad_enabled():
            # Autograd needs the weight for the gradient to the input, a quantized layer for that to its own parameters.
            tensors = [*args, *kwargs.values(), *module.parameters()]
            if any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
                self.held.add(part)


def _own(module: nn.Module) -> set[int]:
    """Ids of the parameters and buffers that a module computes with itself."""
    return {id(t) for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]}


@contextmanager
def offloaded(models: Sequence[Teacher], device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Within, the parts of models that only run, and do not train, wait elsewhere while others run.

    Args:
        models: with the same parts, on ``device``.
        device: where they run.
        wanted: if not, nothing happens.
    """
    if not wanted:
        yield
        return
    # What is in no state dict is made of the rest and would change: a folded layer's weight.
    tensors = [t for model in models for t in model.state_dict(keep_vars=True).values()]
    offload = Offload(models, tensors, device)
    try:
        yield
    finally:
        offload.close()
