"""Multiply-accumulate operations (MACs) of a model by module, counted without weights and without computing."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quantsr.teachers.base import Teacher

FLOPS_PER_MAC = 2


def macs_by_module(teacher: Teacher, shape: tuple[int, ...]) -> dict[str, int]:
    """MACs of one restoration, all denoising steps, by the module that computes them.

    Layers have their products with the weight; other modules have what they multiply themselves, which are the two
    products of attention. Element-wise steps, norms and resizing are left out, as papers do, and so is the optical
    flow that guides a teacher of clips. Large latents are cut into tiles where the denoiser does so; frames are not.

    Args:
        teacher: full precision, on any device, ``meta`` too.
        shape: of the low-quality input, ``(b, 3, h, w)`` or ``(b, t, 3, h, w)``.

    Returns:
        MACs by full module name; modules that multiply nothing are not there.
    """
    model = without_weights(teacher)
    lq = torch.empty(shape, device="meta")
    latent = model.encode(lq)
    encoding = _count(model, partial(model.encode, lq))
    step = _count(model, partial(model.denoise, latent))
    # A teacher of clips decodes with features of its encoder; a restoration has them from the encoding.
    decoding = _count(model, partial(model.decode, latent, lq))
    found = decoding | {name: model.steps * macs for name, macs in step.items()} | encoding
    return {name: macs for name, macs in sorted(found.items()) if macs}


def without_weights(teacher: Teacher) -> Teacher:
    """A copy of the module tree on the ``meta`` device, where tensors are shapes alone; the original stays as it is."""
    tensors: dict[int, Tensor] = {id(t): t.to("meta") for t in teacher.buffers()}
    tensors |= {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in teacher.parameters()}
    return deepcopy(teacher, tensors)


class _Call(nn.Module):
    """A call as the forward pass of a module that holds the model: the counter then knows every module's full name."""

    def __init__(self, model: nn.Module, call: Callable[[], Tensor]):
        super().__init__()
        self.model, self.call = model, call

    def forward(self) -> Tensor:
        return self.call()


@torch.no_grad()
def _count(model: nn.Module, call: Callable[[], Tensor]) -> dict[str, int]:
    """MACs of a call by module, each without those of the modules inside it; ``""`` for what no module computes."""
    with FlopCounterMode(display=False) as counter:
        _Call(model, call)()
    prefix = f"{_Call.__name__}.model."
    flops = {name.removeprefix(prefix): sum(by.values()) for name, by in counter.get_flop_counts().items()}
    flops[""] = flops.pop(_Call.__name__, 0)
    flops.pop("Global", None)
    own = dict(flops)
    for name, inside in flops.items():
        if name:
            own[_owner(name, flops)] -= inside
    return {name: n // FLOPS_PER_MAC for name, n in own.items()}


def _owner(name: str, known: dict[str, int]) -> str:
    """The nearest module around ``name`` that is known; some (a list of layers) never run themselves."""
    while (name := name.rpartition(".")[0]) and name not in known:
        pass
    return name
