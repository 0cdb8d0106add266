"""How much a layer's input varies in space and in time (STCA of QuantVSR, section 3.3), clip by clip.

A clip at a layer is (t, c, n): frames, channels, and positions (pixels or tokens).
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Self

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from quantsr.quant.layer import QuantizedLayer

Samples = dict[str, list[tuple[float, float]]]
"""(spatial, temporal) complexity of every clip that met a layer, by layer name."""

LAYOUTS = {
    ("Conv1d", 3): "(b t) c n -> b t c n",
    ("Conv2d", 4): "(b t) c h w -> b t c (h w)",
    ("Conv3d", 5): "b c t h w -> b t c (h w)",
    ("Linear", 3): "(b t) n c -> b t c n",
}
"""From a layer's kind and the dimensions of its input to clips ``(b, t, c, n)``."""
TEMPORAL_ATTENTION, ACROSS_FRAMES = "temporal_attn", "(b n) t c -> b t c n"
"""The released networks' name of attention over the frames of one position, and the layout of its linear layers."""


def spatial_complexity(x: Tensor) -> Tensor:
    """Mean over frames and channels of the standard deviation (unbiased) over positions.

    Args:
        x: ``(..., t, c, n)``.

    Returns:
        ``(...)``: a scalar for one clip; float32.
    """
    return x.float().std(-1).mean((-2, -1))


def temporal_complexity(x: Tensor) -> Tensor:
    """Mean over the t - 1 pairs of neighbouring frames of |x_{t+1} - x_t|^2 / (c n); 0 where there is one frame.

    Args:
        x: ``(..., t, c, n)``.

    Returns:
        ``(...)``: a scalar for one clip; float32.
    """
    if x.shape[-3] == 1:
        return x.new_zeros(x.shape[:-3], dtype=torch.float32)
    return x.float().diff(dim=-3).square().mean((-3, -2, -1))


class ComplexityProbe:
    """Notes both complexities of the input of some layers, for every clip of every forward pass inside it:

        with probe:
            model(x)

    What it noted stays when it is entered again; of a pass that fails, nothing is kept. No input is stored. Layers
    whose input has no positions (those of a timestep embedding) are left out. A layer that runs several times in a
    pass has several samples a clip.

    Args:
        layers: what to watch, by full module name.
        frames: t of one clip, frames of a clip being neighbours in the batch axis; 1 for image models, where every
            image is a sample.

    Attributes:
        samples: what was noted; see :func:`merge` for several devices.
    """

    def __init__(self, layers: Mapping[str, QuantizedLayer], frames: int):
        self.layers, self.frames = dict(layers), frames
        self.samples: Samples = {}
        self._clips = 0
        self._pending: list[tuple[str, Tensor]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._clips = 0
        self._handles = [
            layer.register_forward_pre_hook(partial(self._note, name)) for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, error: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        # One transfer from the device a pass, not one a layer.
        if error is None and self._pending:
            pairs = map(tuple, torch.cat([noted for _, noted in self._pending]).tolist())
            for name, noted in self._pending:
                self.samples.setdefault(name, []).extend(islice(pairs, len(noted)))
        self._handles, self._pending = [], []

    @torch.no_grad()
    def _note(self, name: str, layer: QuantizedLayer, args: tuple[Tensor, ...]) -> None:
        x = self._clips_of(name, layer.operation.kind, args[0])
        if x is not None and x.shape[-1] > 1:
            self._pending.append((name, torch.stack([spatial_complexity(x), temporal_complexity(x)], -1)))

    def _clips_of(self, name: str, kind: str, x: Tensor) -> Tensor | None:
        """A layer's input as ``(b, t, c, n)``; None where it has no positions."""
        if kind == "Linear" and x.ndim == 2:
            return None
        across = kind == "Linear" and TEMPORAL_ATTENTION in name
        layout = ACROSS_FRAMES if across else LAYOUTS.get((kind, x.ndim))
        if layout is None:
            raise ValueError(f"no clips are known in the input {(*x.shape,)} of {name} ({kind})")
        if across:
            # Clips and positions share one axis: how many clips there are, the layers before have shown.
            fits = x.ndim == 3 and x.shape[1] == self.frames and self._clips and x.shape[0] % self._clips == 0
            sizes = {"b": self._clips, "t": self.frames}
        else:
            fits = x.shape[2] == self.frames if kind == "Conv3d" else x.shape[0] % self.frames == 0
            sizes = {"t": self.frames}
        if not fits:
            raise ValueError(f"the input {(*x.shape,)} of {name} ({kind}) does not hold clips of {self.frames} frames")
        clips = rearrange(x, layout, **sizes)
        self._clips = len(clips)
        return clips


def merge(parts: Iterable[Samples]) -> Samples:
    """The samples of several devices as one; neither quantiles nor ranks depend on their order."""
    merged: Samples = {}
    for part in parts:
        for name, samples in part.items():
            merged.setdefault(name, []).extend(samples)
    return merged
