"""Random weights for models of full size: what needs no trained ones (timing, memory, dry runs) runs on these."""

import math

import torch
from torch import Tensor

from quantsr.teachers.base import Teacher

CONSTANTS = {"bias": 0.0, "temporal_alpha": 0.5}
"""Of vectors, by the last part of their name; the others (gains of normalizations) are 1."""


@torch.no_grad()
def fill_random(teacher: Teacher, seed: int) -> None:
    """Replace the parameters and the prompt embedding of ``teacher`` by random ones of the same dtype, on the CPU.

    Weights are normal with a variance of 1 / fan-in, which keeps the scale of what goes through them (our choice).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float = 1.0) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu").normal_(std=std, generator=generator)

    for module in teacher.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                values = normal(parameter, 1 / math.sqrt(parameter[0].numel()))
            else:
                value = CONSTANTS.get(name, 1.0)
                values = torch.full(parameter.shape, value, dtype=parameter.dtype, device="cpu")
            module.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
    teacher.prompt_embedding = normal(teacher.prompt_embedding)
