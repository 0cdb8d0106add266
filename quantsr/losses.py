"""Perceptual distances between images, by name: losses for training."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.errors import UserError

PERCEPTUAL = ("features", "lpips")


Features = Callable[[Tensor], list[Tensor]]
"""An image or clip to features ``(n, c, h, w)`` at several resolutions, n all its frames."""


def perceptual_distance(name: str, features: Features) -> nn.Module:
    """A distance ``d(image, target)`` between images ``(b, 3, h, w)`` in [0, 1], a scalar to be trained against.

    Clips ``(b, t, 3, h, w)`` are compared frame by frame.

    Args:
        name: one of :data:`PERCEPTUAL`. ``features`` is :class:`EncoderFeatures`; ``lpips`` is :class:`LPIPS`.
        features: of a teacher (:meth:`Teacher.features`), which ``features`` measures in.

    Raises:
        UserError: an unknown name, or LPIPS without its weights.
    """
    if name not in PERCEPTUAL:
        raise UserError(f"method.perceptual takes one of {list(PERCEPTUAL)}, not {name!r}")
    return LPIPS() if name == "lpips" else EncoderFeatures(features)


class LPIPS(nn.Module):
    """LPIPS (arXiv 1801.03924, version 0.1) over VGG16, the form that it is trained against in.

    The weights of VGG16 are torchvision's, read from torch.hub's folder and never downloaded; the linear heads come
    with torchmetrics. The network is frozen and no submodule: whoever holds this module neither trains nor stores it.
    It follows the images to their device.

    Raises:
        UserError: the weights of VGG16 are not there, or not readable.
    """

    SMALLEST = 16  # VGG16 halves the image four times.

    def __init__(self):
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import VGG16_Weights

        file = _hub_file(VGG16_Weights.DEFAULT.url)
        try:
            metric = LearnedPerceptualImagePatchSimilarity("vgg")
        except Exception as error:  # torch.load has many.
            raise UserError(f"{file} does not hold the weights of VGG16 ({type(error).__name__})") from error
        # The metric's network alone: the metric accumulates, and refuses values outside [0, 1], which decoders give.
        # In a tuple, so that it is neither a submodule nor in the state dict.
        self._network = (metric.net.requires_grad_(False),)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Mean over the batch, a scalar. The target takes no gradient.

        Args:
            image: ``(b, 3, h, w)`` or ``(b, t, 3, h, w)``, RGB in [0, 1] or slightly outside, sides of 16 pixels or
                more.
            target: the same.

        Raises:
            UserError: smaller images.
        """
        if min(image.shape[-2:]) < self.SMALLEST:
            raise UserError(
                f"LPIPS needs images of {self.SMALLEST} x {self.SMALLEST} pixels or more, "
                f"not {image.shape[-1]} x {image.shape[-2]}: give a larger data.crop"
            )
        network = self._network[0].to(image.device)
        frames = (clip.flatten(0, -4).float() for clip in (image, target.detach()))
        return network(*frames, normalize=True).mean()


def _hub_file(url: str) -> Path:
    """Where torch.hub keeps the file of ``url``.

    Raises:
        UserError: it is not there.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not file.is_file():
        raise UserError(
            f"LPIPS needs the weights of VGG16, and there is no {file}: "
            f"put {url} there, or take method.perceptual=features, which needs none"
        )
    return file


class EncoderFeatures(nn.Module):
    """Perceptual distance in the features of a frozen VAE encoder, where LPIPS' weights are not at hand.

    The output of every resolution of the encoder is normalized over its channels (as LPIPS does, arXiv 1801.03924,
    eq. 1) and compared by mean squared error.

    Args:
        features: of a frozen teacher (:meth:`Teacher.features`); no submodule of this.
    """

    def __init__(self, features: Features):
        super().__init__()
        self.features = features

    def unit_features(self, image: Tensor) -> list[Tensor]:
        """Unit-length features of every resolution for an image or clip in [0, 1]."""
        return [F.normalize(x, dim=1, eps=1e-6) for x in self.features(image)]

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Sum over resolutions of the mean squared distance, a scalar. The target takes no gradient."""
        pairs = zip(self.unit_features(image), self.unit_features(target.detach()), strict=True)
        return sum((F.mse_loss(a, b.detach()) for a, b in pairs), start=image.new_zeros(()))
