"""Optical flow estimators by name."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small
from torchvision.transforms.functional import rgb_to_grayscale

from quantsr.errors import UserError
from quantsr.flow.warp import resize_flow

FlowEstimator = Callable[[Tensor, Tensor], Tensor]
"""``estimate(first, second)``: two batches of images ``(n, 3, h, w)``, RGB in [0, 1], to the flow ``(n, 2, h, w)`` from
the first to the second, float32, pixels, on their device."""

RAFT: dict[str, tuple[Callable[..., nn.Module], WeightsEnum]] = {
    "raft_small": (raft_small, Raft_Small_Weights.DEFAULT),
    "raft_large": (raft_large, Raft_Large_Weights.DEFAULT),
}
ESTIMATORS = ("dis", *RAFT)

RAFT_UPDATES = 20  # As RAFT's evaluation of flow and E*_warp; MGLD-VSR itself takes 10.
RAFT_SMALLEST = 128  # pixels: its correlation pyramid halves an eighth of that three times.
DIS_SMALLEST = 256  # pixels: it works on half of them, in patches of 8, and goes astray with few patches.


def flow_estimator(name: str, weights: str | Path | None = None) -> FlowEstimator:
    """The flow estimator ``name``.

    Images smaller than an estimator can take are enlarged for it.

    Args:
        name: ``dis`` (Kroeger et al., arXiv 1603.03590; OpenCV's, which needs no weights), ``raft_small`` or
            ``raft_large`` (Teed and Deng, arXiv 2003.12039; torchvision's).
        weights: for RAFT, a state dict of torchvision's or of RAFT's authors'. By default torchvision's file from
            torch.hub's folder, which is never downloaded.

    Raises:
        UserError: an unknown name, weights for ``dis``, a missing or wrong file of weights.
    """
    if name not in ESTIMATORS:
        raise UserError(f"there is no optical flow estimator {name!r}: take one of {list(ESTIMATORS)}")
    if name == "dis":
        if weights is not None:
            raise UserError(f"the optical flow estimator dis has no weights: leave out {weights}, or take raft_small")
        return DIS()
    return Raft(name, weights)


class DIS:
    """Dense inverse search on luma of 8 bits, OpenCV's medium preset.

    It runs on the CPU, whatever device the images are on.
    """

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        _check_pair(first, second)
        import cv2

        estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        pairs = zip(*(self._grey(_enlarge(images, DIS_SMALLEST)) for images in (first, second)), strict=True)
        flow = torch.from_numpy(np.stack([estimator.calc(*pair, None) for pair in pairs]))
        return resize_flow(rearrange(flow, "n h w c -> n c h w").to(first.device), first.shape[-2:])

    @staticmethod
    def _grey(images: Tensor) -> np.ndarray:
        """``(n, h, w)``, uint8."""
        grey = rgb_to_grayscale(images.float()).squeeze(1)
        return (grey.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()


class Raft:
    """RAFT, frozen. It follows the images to their device.

    Args:
        name: one of :data:`RAFT`.
        weights: see :func:`flow_estimator`.
    """

    def __init__(self, name: str, weights: str | Path | None = None):
        build, default = RAFT[name]
        file = Path(weights).expanduser() if weights is not None else _hub_file(name, default.url)
        self._network = build(weights=None).eval().requires_grad_(False)
        _load(self._network, file, name)

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        _check_pair(first, second)
        network = self._network.to(first.device)
        images = [_enlarge(images.float(), RAFT_SMALLEST) for images in (first, second)]
        height, width = images[0].shape[-2:]
        above, left = -height % 8 // 2, -width % 8 // 2
        sides = (left, -width % 8 - left, above, -height % 8 - above)
        images = [F.pad(x, sides, mode="replicate") * 2 - 1 for x in images]
        # Half precision costs tenths of a pixel.
        with torch.autocast(first.device.type, enabled=False):
            flow = network(*images, num_flow_updates=RAFT_UPDATES)[-1]
        return resize_flow(flow[..., above : above + height, left : left + width], first.shape[-2:])


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != 3:
        raise ValueError(f"flow takes two batches (n, 3, h, w) of one shape, not {first.shape} and {second.shape}")


def _enlarge(images: Tensor, smallest: int) -> Tensor:
    """Images of at least ``smallest`` pixels each way, of the same aspect ratio but for rounding."""
    factor = smallest / min(images.shape[-2:])
    if factor <= 1:
        return images
    size = [math.ceil(side * factor) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _hub_file(name: str, url: str) -> Path:
    """Where torch.hub keeps the file of ``url``.

    Raises:
        UserError: it is not there.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not file.is_file():
        raise UserError(
            f"{name} needs its weights, and there is no {file}: put {url} there, "
            "or take the optical flow estimator dis, which needs none"
        )
    return file


def _load(network: nn.Module, file: Path, name: str) -> None:
    """Load a state dict of either naming.

    Raises:
        UserError: no such file, or it does not hold the weights of ``name``.
    """
    if not file.is_file():
        raise UserError(f"there are no weights of {name} at {file}: give the path of a state dict")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(torchvision_names(state))
    except Exception as error:  # torch.load has many.
        raise UserError(f"{file} does not hold the weights of {name} ({type(error).__name__})") from error


# From the names of RAFT's authors to torchvision's, applied one after the other.
RENAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(\.layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(\.layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"\.convc(\d)\.", r".convcorr\1."),
    (r"\.convf(\d)\.", r".convflow\1."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of RAFT in torchvision's names.

    Args:
        state: in torchvision's names, which stay, or those of RAFT's authors, also with ``DataParallel``'s prefix.
    """
    renamed = {}
    for name, tensor in state.items():
        if re.search(r"\.layer\d\.\d\.norm3\.", name):
            continue  # The shortcut's normalization, which the authors store twice; downsample.1 stays.
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
