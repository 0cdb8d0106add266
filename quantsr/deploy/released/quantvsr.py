"""QuantVSR's released students (github.com/bowenchai/QuantVSR; formulas: arXiv 2508.04485, section 3).

One file, named after its bits (``w4a4.pth``), which are nowhere in it: layer name -> state dict of the layer. Names are
those of MGLD-VSR's UNet behind ``model.``; weights are MGLD-VSR's own. The time embedding's first layer and the first
and the last convolution are not quantized and not in it. Of a layer with weight ``(out, in, *kernel)``:

    wq.x_min, wq.x_max, wq1...                      (out, 1, ...): bounds of both halves of the rotated weight
    stca._rank, stca.L1, stca.L2                    (), (out, r), (r, in * prod(kernel)): the branch L1 L2
    rot.rot_mat, rot1.rot_mat                       (in / 2, in / 2): rotations of both halves
    lba.lba                                         (1, out, ...): b_align

Inputs have dynamic bounds per tensor and half. Linear layers compute x R and W R, convolutions x R^T and W R^T along
the channels. Every scale is at least 1e-4 (``AffineSpec.as_released``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantsr.deploy.released.fit import Shapes, check
from quantsr.errors import UserError
from quantsr.quant.folded import FoldedLayer
from quantsr.quant.operation import Operation
from quantsr.quant.prepare import is_layer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.quant.transforms import Rotation
from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr import MGLDVSRTeacher

PREFIX = "model."
EXCLUDED = ("time_embed.0", "input_blocks.0.0", "out.2")

Entries = dict[str, Tensor]


def is_quantvsr(content: Any) -> bool:
    """Whether a file's content is a dict of these layers."""
    return isinstance(content, dict) and any(isinstance(e, dict) and "stca.L1" in e for e in content.values())


class QuantVSRFile:
    """A released student.

    Args:
        path: of the file, for messages.
        content: of the file.
        teacher: whose weights it goes with.

    Raises:
        UserError: the teacher is no MGLD-VSR.
    """

    part = "unet"

    def __init__(self, path: Path, content: dict[str, Entries], teacher: Teacher):
        if not isinstance(teacher, MGLDVSRTeacher):
            raise UserError(f"{path} is a QuantVSR student, which goes with an MGLD-VSR teacher, not {teacher.kind}")
        self.path, self.content, self.network = path, content, teacher.unet

    def check(self) -> None:
        """Compare with the teacher.

        Raises:
            UserError: a short table of what is missing, unexpected and of another shape.
        """
        expected = {
            f"{PREFIX}{name}.{entry}": shape
            for name, layer in self._layers()
            for entry, shape in self._shapes(name, layer).items()
        }
        found = {
            f"{name}.{entry}": tensor for name, entries in self.content.items() for entry, tensor in entries.items()
        }
        check(self.path, expected, found)

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.network.named_modules():
            if is_layer(module) and name not in EXCLUDED:
                yield name, module

    def _shapes(self, name: str, layer: Any) -> Shapes:
        """Entries of one layer; the rank is the file's own."""
        (rows, channels), columns = layer.weight.shape[:2], layer.weight[0].numel()
        entries = self.content.get(PREFIX + name, {})
        rank = next((entries[f].shape[axis] for f, axis in (("stca.L1", -1), ("stca.L2", 0)) if f in entries), 0)
        half = channels // 2
        bounds = {f"{quantizer}.x_{end}": (rows,) for quantizer in ("wq", "wq1") for end in ("min", "max")}
        branch = {"stca._rank": (), "stca.L1": (rows, rank), "stca.L2": (rank, columns)}
        rotations = {"rot.rot_mat": (half, half), "rot1.rot_mat": (channels - half, channels - half)}
        return {**bounds, **branch, **rotations, "lba.lba": (rows,)}

    def fill(self, student: Teacher, bits: Bits) -> None:
        """Put the inference form of every layer into ``student``, whose weights are the teacher's."""
        for name, layer in list(self._layers()):
            student.set_submodule(f"unet.{name}", layer_of(layer, self.content[PREFIX + name], bits))


@torch.no_grad()
def layer_of(module: Any, entries: Entries, bits: Bits) -> FoldedLayer:
    """The inference form of one layer.

    Args:
        module: with the weights.
        entries: of the file.
        bits: of the student.
    """
    down, up = entries["stca.L2"].float(), entries["stca.L1"].float()
    recipe = LayerRecipe(
        weight=AffineSpec(bits.weight, granularity="channel", momentum=None, as_released=True),
        act=AffineSpec(bits.act, range="dynamic", as_released=True),
        rotation=True,
        rank=up.shape[1],
        channel_split=True,
        bias_alignment=True,
    )
    weight, operation = module.weight.float(), Operation.of(module)
    rows, channels, *kernel = weight.shape
    matrices = [entries[f"{name}.rot_mat"].float() for name in ("rot", "rot1")]
    rotation = Rotation(recipe.parts(channels), operation.axis)
    rotation.set_matrices(matrices if operation.kind == "Linear" else [matrix.T for matrix in matrices])
    rotated = rotation.weight(weight - (up @ down).view_as(weight))
    quantizer = Quantizer(recipe.weight, recipe.parts(channels), 1, rows)
    bounds = ([entries[f"{name}.x_{end}"].float().flatten() for name in ("wq", "wq1")] for end in ("min", "max"))
    quantizer.set_bounds(*(torch.stack(halves, 1) for halves in bounds))
    scale, zero_point = quantizer.part_qparams(rotated)
    alignment = entries["lba.lba"].float().flatten()
    state = {
        "codes": quantizer.quantize(rotated),
        "scale": scale,
        "zero_point": zero_point,
        "bias": alignment if module.bias is None else module.bias.float() + alignment,
        "L1": up,
        "L2": rotation.weight(down.view(-1, channels, *kernel)),
    }
    state |= {f"rotation.{name}": matrix for name, matrix in rotation.state_dict().items()}
    folded = FoldedLayer(operation, weight.shape, recipe, module.bias is not None)
    folded.load_state_dict(state)
    return folded
