"""DOVER: how good a clip looks, without a reference (Wu et al., arXiv 2211.04894), where its weights are on disk.

A technical view (fragments of the frames at full resolution, FAST-VQA, arXiv 2207.02595) and an aesthetic view (the
frames, resized) go through one network each, see :mod:`quantsr.metrics.dover_networks`. Our choices where the authors'
script leaves things to chance or to a video's compression:

- Fragments and frames are taken from the middle of the range that the script draws them from at random.
- Frames are rounded to 8 bits, the depth of the videos that the script reads, and not compressed.
- Frames whose shorter side is below 224 pixels are enlarged to it before fragments are cut.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from quantsr.errors import UserError
from quantsr.metrics.dover_networks import FRAGMENTS, DoverNetwork
from quantsr.metrics.weights import found, missing

SIDE = 224  # pixels of a view
FRAMES = 32  # of a view
TECHNICAL_VIEWS = 3  # along the clip
STRIDE = 2  # frames from one frame of a technical view to the next
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB in [0, 255], of ImageNet


class Dover:
    """The fused score of DOVER. The network is frozen, and follows the clips to their device.

    Args:
        weights_dir: looked into first for the weights, then torch.hub's folder.

    Raises:
        UserError: the weights are missing or not readable.
    """

    def __init__(self, weights_dir: str | Path | None = None):
        lost = missing("dover", weights_dir)
        if lost is not None:
            raise UserError(f"dover cannot be measured: {lost}")
        (file,) = found("dover", weights_dir).values()
        network = DoverNetwork()
        try:
            network.load_state_dict(_torchvision_names(torch.load(file, map_location="cpu", weights_only=True)))
        except Exception as error:  # torch.load has many.
            raise UserError(f"{file} does not hold the weights of DOVER ({type(error).__name__})") from error
        # In a tuple, so that it never becomes a submodule.
        self._network = (network.eval().requires_grad_(False),)

    @torch.no_grad()
    def __call__(self, clip: Tensor) -> float:
        """Score of one clip, in (0, 1), higher is better.

        Args:
            clip: RGB in [0, 1], ``(t, 3, h, w)``. As in the authors' script, a clip that is shorter than a technical
                view (63 frames) starts over, and of one below 32 frames the aesthetic view has the first frame alone.

        Raises:
            UserError: no such clip.
        """
        if clip.ndim != 4 or clip.shape[0] == 0 or clip.shape[1] != 3:
            raise UserError(f"DOVER needs clips (t, 3, h, w) of one frame or more, got {tuple(clip.shape)}")
        technical, aesthetic = self._network[0].to(clip.device)(technical_views(clip), aesthetic_view(clip))
        return fused(technical.item(), aesthetic.item())


def _torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under the names of :class:`DoverNetwork`."""
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def _torchvision_name(name: str) -> str:
    # torchvision has the stages and the mergings between them in one list.
    name = re.sub(r"\blayers\.(\d)\.blocks\b", lambda match: f"features.{2 * int(match[1])}", name)
    name = re.sub(r"\blayers\.(\d)\.downsample\b", lambda match: f"features.{2 * int(match[1]) + 1}", name)
    for theirs, ours in (("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.3"), ("fc_hid", "0"), ("fc_last", "2")):
        name = name.replace(theirs, ours)
    return name


def fused(technical: float, aesthetic: float) -> float:
    """Both scores as one, as the authors' script for one video does it: deviations from means over KoNViD-1k, weighted.

    Another script of theirs confuses the two scores.
    """
    deviation = 0.6104 * (technical - 0.1107) / 0.07355 + 0.3896 * (aesthetic + 0.08285) / 0.03774
    return 1 / (1 + math.exp(-deviation))


def technical_frames(count: int) -> Tensor:
    """Which of ``count`` frames the technical views show, ``(3, 32)``: every second one from three starts."""
    part = count // TECHNICAL_VIEWS
    starts = torch.arange(TECHNICAL_VIEWS) * part + _middle(part - FRAMES * STRIDE)
    return (starts.unsqueeze(1) + torch.arange(FRAMES) * STRIDE) % count


def aesthetic_frames(count: int) -> Tensor:
    """Which of ``count`` frames the aesthetic view shows, ``(32,)``: spread over the clip."""
    part = count // FRAMES
    return torch.arange(FRAMES) * part + _middle(part - STRIDE)


def _middle(choices: int) -> int:
    """The middle of 0, ..., choices - 1, or 0."""
    return max(choices - 1, 0) // 2


def technical_views(clip: Tensor) -> Tensor:
    """Fragments of a clip ``(t, 3, h, w)``: 7 x 7 patches of 32 x 32 pixels, side by side, ``(3, 3, 32, 224, 224)``.

    Views first, then channels, then frames; normalized.
    """
    frames = clip[technical_frames(len(clip)).flatten().to(clip.device)]
    height, width = frames.shape[-2:]
    if min(height, width) < SIDE:
        size = [math.ceil(side * SIDE / min(height, width)) for side in (height, width)]
        frames = F.interpolate(frames.float(), size, mode="bilinear")
    rows, columns = (_fragment_pixels(side, clip.device) for side in frames.shape[-2:])
    fragments = frames[..., rows.unsqueeze(1), columns]
    return rearrange(_normalized(fragments), "(n t) c h w -> n c t h w", n=TECHNICAL_VIEWS)


def _fragment_pixels(length: int, device: torch.device) -> Tensor:
    """The pixels along a side that are kept, ``(224,)``."""
    size, cell = SIDE // FRAGMENTS, length // FRAGMENTS
    starts = torch.arange(FRAGMENTS, device=device) * cell + _middle(cell - size)
    return (starts.unsqueeze(1) + torch.arange(size, device=device)).flatten()


def aesthetic_view(clip: Tensor) -> Tensor:
    """Resized frames of a clip ``(t, 3, h, w)``: ``(1, 3, 32, 224, 224)``, normalized."""
    frames = clip[aesthetic_frames(len(clip)).to(clip.device)].float()
    # Without antialiasing, as torchvision resized tensors when the weights were trained.
    frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear")
    return rearrange(_normalized(frames), "t c h w -> 1 c t h w")


def _normalized(frames: Tensor) -> Tensor:
    """``(t, 3, h, w)`` in [0, 1], rounded to 8 bits, to mean 0 and deviation 1."""
    mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (MEAN, STD))
    return ((frames.float() * 255).round().clamp(0, 255) - mean) / std
