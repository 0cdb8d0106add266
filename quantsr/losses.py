"""Losses between images and between latents."""

import torch.nn.functional as F
from torch import Tensor, nn


class EncoderFeatures(nn.Module):
    """Perceptual distance in the features of a frozen VAE encoder, where LPIPS' weights are not at hand.

    The output of every resolution of the encoder is normalized over its channels (as LPIPS does, arXiv 1801.03924,
    eq. 1) and compared by mean squared error.

    Args:
        encoder: diffusers' ``Encoder`` (``vae.encoder`` of a teacher); used frozen.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def features(self, image: Tensor) -> list[Tensor]:
        """Unit-length features of every resolution for an image ``(b, 3, h, w)`` in [0, 1]."""
        x = self.encoder.conv_in(image * 2 - 1)
        outputs = []
        for block in self.encoder.down_blocks:
            x = block(x)
            outputs.append(F.normalize(x, dim=1, eps=1e-6))
        return outputs

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Sum over resolutions of the mean squared distance, a scalar. The target takes no gradient."""
        pairs = zip(self.features(image), self.features(target.detach()), strict=True)
        return sum((F.mse_loss(a, b.detach()) for a, b in pairs), start=image.new_zeros(()))
