"""Turn a model into a student: swap its layers for quantized ones, as ordered rules say."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from quantsr.quant.attention import QuantizedAttention
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.operation import CONVOLUTIONS
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe, Rule


@dataclass(frozen=True)
class Swap:
    """One line of what :func:`prepare` did.

    Attributes:
        name: full module name.
        kind: class of the original module.
        rule: pattern that decided.
        recipe: what it became; None where it was kept in full precision.
    """

    name: str
    kind: str
    rule: str
    recipe: LayerRecipe | AttentionRecipe | None


def is_layer(module: nn.Module) -> bool:
    """Whether a layer recipe applies to the module."""
    return isinstance(module, nn.Linear) or type(module) in CONVOLUTIONS


def is_attention(module: nn.Module) -> bool:
    """Whether an attention recipe applies: diffusers' ``Attention``, known by its interface."""
    return hasattr(module, "set_processor") and hasattr(module, "to_q")


def prepare(model: nn.Module, rules: Sequence[Rule], seed: int = 0) -> list[Swap]:
    """Swap the layers of ``model`` in place.

    Every linear layer and convolution takes the first rule that matches its name and holds a layer recipe or none; so
    does every attention module, with attention recipes, but those may match no rule and are then left alone. The new
    layers share the parameters of the old.

    Args:
        model: becomes the student.
        rules: in order of precedence.
        seed: of random rotations; each layer draws its own from it and its name.

    Returns:
        What was done, in the order of the model's modules.

    Raises:
        ValueError: a layer that no rule matches, or a rule that decides nothing.
    """
    swaps: list[Swap] = []
    unmatched: list[str] = []
    used: set[int] = set()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, QuantizedLayer) or not (is_layer(module) or is_attention(module)):
            continue
        rule = _first(rules, name, LayerRecipe if is_layer(module) else AttentionRecipe)
        if rule is None:
            if is_layer(module):
                unmatched.append(name)
            continue
        used.add(id(rule))
        swaps.append(Swap(name, type(module).__name__, rule.pattern, rule.recipe))
    if unmatched:
        raise ValueError(f"no rule says what to do with {len(unmatched)} layers: {', '.join(unmatched[:5])} ...")
    idle = [rule.pattern for rule in rules if id(rule) not in used]
    if idle:
        raise ValueError(f"rules that decide nothing (no module of that name, or an earlier rule wins): {idle}")
    for swap in swaps:
        apply_swap(model, swap, seed)
    return swaps


def _first(rules: Sequence[Rule], name: str, kind: type) -> Rule | None:
    matching = (rule for rule in rules if fnmatchcase(name, rule.pattern))
    return next((rule for rule in matching if rule.recipe is None or isinstance(rule.recipe, kind)), None)


def apply_swap(model: nn.Module, swap: Swap, seed: int) -> None:
    """Put the quantized counterpart of one module into ``model``."""
    module: Any = model.get_submodule(swap.name)
    if isinstance(swap.recipe, LayerRecipe):
        layer = QuantizedLayer(module, swap.recipe, zlib.crc32(f"{seed} {swap.name}".encode()))
        model.set_submodule(swap.name, layer.train(module.training))
    elif isinstance(swap.recipe, AttentionRecipe):
        head_dim = module.to_q.weight.shape[0] // module.heads
        module.set_processor(QuantizedAttention(swap.recipe, head_dim).to(module.to_q.weight.device))
