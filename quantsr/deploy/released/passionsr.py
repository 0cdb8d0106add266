"""PassionSR's released students (github.com/libozhu03/PassionSR; formulas: arXiv 2411.17106, sections 3.2 and 3.3).

Two files, ``unet_ckpt_merge_saw_sep.pth`` and, where the VAE is quantized too, ``vae_ckpt_merge_saw_sep.pth``: each the
state dict of a wrapped network in Stable Diffusion's original naming, behind ``model.model.``. Bits are in the
authors' YAML alone, weights nowhere: they are those of OSEDiff with its LoRA merged. Of one layer with weight
``(out, in, *kernel)``:

    scale_factor, offset                            (1, in) of a linear layer, (1, in, 1, 1) of a convolution
    weight_quantizer_0.x_min, .x_max                (out, 1) or (out, 1, 1, 1)
    act_quantizer_0.x_min, .x_max                   ()
    bias_quantizer.x_min, .x_max                    (), where there is a bias
    weight_quantizer_1..., act_quantizer_1...       of the second halves, where the network is split: the UNet

Of one attention of the UNet (the products of the VAE's are not quantized; its projections are convolutions):

    act_quantizer_q, _k, _v, _w: .x_min, .x_max     (); w are the softmax's probabilities
    scale_factor_qk, scale_factor_vw                (head channels), (keys): d_qk and d_vw

Normalizations keep ``weight`` and ``bias``. ``time_embed.0``, ``out.2`` and the VAE's quant_conv, post_quant_conv and
conv_out have 8 bits whatever the rest has.

Where the code departs from the paper the student follows the code: biases are quantized per tensor (folded into their
values); linear layers compute Qa((x + o) / s) Qw(W s) + W o (folded: their offset is -o, and what is added stays W o);
and their inputs are split along axis 1, which are the tokens (``LayerRecipe.token_split``).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.deploy.released.fit import check
from quantsr.deploy.released.names import diffusers_names
from quantsr.errors import UserError
from quantsr.quant.affine import fake_quantize, qparams
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.prepare import Swap, apply_swap, is_attention, is_layer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher
from quantsr.teachers.one_step import OneStepTeacher

ALPHA = 0.3
SENSITIVE_BITS = 8
ENTRY = re.compile(r"(?:model\.)*(.+?)\.(\w+_quantizer\w*\.x_(?:min|max)|[^.]+)")
ENDS = {"lower": "min", "upper": "max"}
FACTORS = {"query": "q", "key": "k", "probability": "w", "value": "v"}

Entries = dict[str, Tensor]


def is_passionsr(content: Any) -> bool:
    """Whether a file's content is one of these state dicts."""
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        return False
    return any(str(name).endswith(".scale_factor") for name in content)


class PassionSRFile:
    """One network of a released student.

    Args:
        path: of the file, for messages.
        content: of the file.
        teacher: whose weights it goes with.

    Attributes:
        part: ``unet`` or ``vae``.

    Raises:
        UserError: the teacher is no image teacher.
    """

    def __init__(self, path: Path, content: dict[str, Tensor], teacher: Teacher):
        if not isinstance(teacher, OneStepTeacher):
            raise UserError(f"{path} is a PassionSR student, which goes with an image teacher, not {teacher.kind}")
        self.path = path
        modules: dict[str, Entries] = {}
        for name, tensor in content.items():
            match = ENTRY.fullmatch(name)
            module, entry = match.groups() if match else ("", name)
            modules.setdefault(module, {})[entry] = tensor
        self.part = "vae" if any(module.startswith(("encoder.", "decoder.")) for module in modules) else "unet"
        self.network = teacher.get_submodule(self.part)
        self.split = any("weight_quantizer_1.x_min" in entries for entries in modules.values())
        names = diffusers_names(self.part, modules, self.network.config)
        self.sensitive = {name for layers in teacher.sensitive().values() for name in layers}
        self.originals = {name: original for original, name in names.items()}
        self.modules = {names.get(module, module): entries for module, entries in modules.items()}

    # What has to be there.

    def check(self) -> None:
        """Compare with the teacher.

        Raises:
            UserError: a short table of what is missing, unexpected and of another shape.
        """
        expected = {
            self._full_name(name, entry): shape
            for name, module in self._wanted()
            for entry, shape in self._shapes(module).items()
        }
        found = {
            self._full_name(name, e): tensor for name, entries in self.modules.items() for e, tensor in entries.items()
        }
        check(self.path, expected, found)

    def _full_name(self, module: str, entry: str) -> str:
        """As in the file; a module that the file has not, by diffusers' name."""
        return f"{self.originals.get(module, module)}.{entry}"

    def _wanted(self) -> Iterator[tuple[str, nn.Module]]:
        """The modules of the network that have entries."""
        for name, module in self.network.named_modules():
            products = is_attention(module) and self.part == "unet"
            if is_layer(module) or products or any(True for _ in module.parameters(recurse=False)):
                yield name, module

    def _shapes(self, module: Any) -> dict[str, tuple[int, ...] | None]:
        """Entries of one module."""
        if is_attention(module):
            shapes: dict[str, tuple[int, ...] | None] = _bounds(*(f"act_quantizer_{f}" for f in FACTORS.values()))
            return shapes | {"scale_factor_qk": (_head_dim(module),), "scale_factor_vw": None}
        if not is_layer(module):
            return {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
        rows, channels = module.weight.shape[:2]
        shapes = {"scale_factor": (channels,), "offset": (channels,)}
        for half in self._halves:
            shapes |= _bounds(f"weight_quantizer_{half}", shape=(rows,)) | _bounds(f"act_quantizer_{half}")
        return shapes if module.bias is None else shapes | _bounds("bias_quantizer")

    @property
    def _halves(self) -> range:
        return range(2 if self.split else 1)

    # What becomes of it.

    def fill(self, student: Teacher, bits: Bits) -> None:
        """Put the inference form of every module into ``student``, whose weights are the teacher's."""
        for name, module in list(self._wanted()):
            entries, full_name = self.modules[name], f"{self.part}.{name}"
            if is_layer(module):
                widths = bits.at_least(SENSITIVE_BITS) if full_name in self.sensitive else bits
                student.set_submodule(full_name, layer_of(module, entries, widths))
            elif is_attention(module):
                _quantize_products(student, full_name, entries, bits)
            else:
                own = student.get_submodule(full_name)
                for leaf, parameter in module.named_parameters(recurse=False):
                    setattr(own, leaf, nn.Parameter(entries[leaf].to(parameter.dtype)))


@torch.no_grad()
def layer_of(module: Any, entries: Entries, bits: Bits) -> FoldedLayer:
    """The inference form of one layer.

    Args:
        module: with the weights.
        entries: of the file.
        bits: of this layer.
    """
    halves = 2 if "weight_quantizer_1.x_min" in entries else 1
    linear = entries["scale_factor"].ndim == 2  # In the authors' model: here, the VAE's attention is linear too.
    recipe = LayerRecipe(
        weight=AffineSpec(bits.weight, granularity="channel", range="learned"),
        act=AffineSpec(bits.act, range="learned"),
        smoothing=ALPHA,
        offset=True,
        channel_split=halves == 2,
        token_split=halves == 2 and linear,
    )

    def stacked(kind: str, end: str) -> Tensor:
        return torch.stack([entries[f"{kind}_quantizer_{half}.x_{end}"].float().flatten() for half in range(halves)], 1)

    weight = module.weight.float()
    rows, channels, *kernel = weight.shape
    scale, offset = (entries[name].float().flatten() for name in ("scale_factor", "offset"))
    smoothed = weight * scale.view(-1, *(1 for _ in kernel))
    quantizer = Quantizer(recipe.weight, recipe.parts(channels), 1, rows)
    quantizer.set_bounds(*(stacked("weight", end) for end in ENDS.values()))
    weight_scale, zero_point = quantizer.part_qparams(smoothed)
    state = {
        "codes": quantizer.quantize(smoothed),
        "scale": weight_scale,
        "zero_point": zero_point,
        "smoothing.scale": scale,
        "smoothing.offset": -offset if linear else offset,
        "offset_response": torch.einsum("oi...,i->o...", weight, offset)[:, None],
    }
    state |= {f"input_quantizer.{ours}": stacked("act", end).flatten() for ours, end in ENDS.items()}
    if module.bias is not None:
        state["bias"] = _rounded_bias(module.bias.float(), entries, bits.weight)
    folded = FoldedLayer(Operation.of(module), weight.shape, recipe, module.bias is not None)
    folded.load_state_dict(state)
    return folded


def _bounds(*quantizers: str, shape: tuple[int, ...] = ()) -> dict[str, tuple[int, ...] | None]:
    """Entries of quantizers."""
    return {f"{quantizer}.x_{end}": shape for quantizer in quantizers for end in ENDS.values()}


def _head_dim(attention: Any) -> int:
    return attention.to_q.weight.shape[0] // attention.heads


def _rounded_bias(bias: Tensor, entries: Entries, bits: int) -> Tensor:
    """The bias as the authors' code uses it: quantized per tensor."""
    spec = AffineSpec(bits)
    lower, upper = (entries[f"bias_quantizer.x_{end}"].float() for end in ENDS.values())
    return fake_quantize(bias, *qparams(lower, upper, spec.qmin, spec.qmax), spec.qmin, spec.qmax)


def _quantize_products(student: Teacher, name: str, entries: Entries, bits: Bits) -> None:
    """Give one attention of ``student`` its quantized products."""
    recipe = AttentionRecipe(AffineSpec(bits.act, range="learned"), smoothing=ALPHA)
    apply_swap(student, Swap(name, "Attention", name, recipe), seed=0)
    state = {
        f"{ours}.{bound}": entries[f"act_quantizer_{theirs}.x_{end}"].float().view(1)
        for ours, theirs in FACTORS.items()
        for bound, end in ENDS.items()
    }
    state["channel_scale.scale"] = entries["scale_factor_qk"].float()
    state["key_scale.scale"] = entries["scale_factor_vw"].float()
    attention: Any = student.get_submodule(name)
    attention.processor.load_state_dict(state)
