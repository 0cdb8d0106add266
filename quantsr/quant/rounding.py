"""How a weight's values become codes, where that is not rounding to the nearest."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from quantsr.quant.affine import dequantize
from quantsr.quant.quantizer import Quantizer

RoundingKind = Literal["nearest", "adaptive", "stored"]

LOWEST, HIGHEST = -0.1, 1.1
"""The stretch of the sigmoid (AdaRound, arXiv 2004.10568, eq. 23): 0 and 1 are reached, and gradients reach beyond."""


class AdaptiveRounding(nn.Module):
    """Each weight is rounded down or up, as training decides (AdaRound, arXiv 2004.10568; BRECQ; Q-Diffusion).

        codes = clamp(floor(w / scale) + h(V) + zero_point, qmin, qmax)      h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)

    While V trains h is soft; after :meth:`harden` it is 0 or 1, and the codes are whole numbers.

    Args:
        shape: of the weight.
    """

    hard: Tensor

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.logits = nn.Parameter(torch.full(shape, torch.nan))
        self.register_buffer("hard", torch.tensor(False))

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`reset` has been called."""
        return not self.logits.isnan().any()

    @torch.no_grad()
    def reset(self, w: Tensor, quantizer: Quantizer) -> None:
        """Start where h is what rounding down takes away: the soft weight is w itself, where it is not clamped."""
        scaled = w / quantizer.qparams(w)[0]
        fraction = (scaled - scaled.floor()).clamp(1e-4, 1 - 1e-4)
        self.logits.copy_(torch.logit((fraction - LOWEST) / (HIGHEST - LOWEST)))
        self.hard.fill_(False)

    def harden(self) -> None:
        """Round for good."""
        self.hard.fill_(True)

    def up(self) -> Tensor:
        """What V leans to: 1 for up and 0 for down."""
        return (self.logits >= 0).to(self.logits.dtype)

    def share(self) -> Tensor:
        """h(V): how much of a step each weight goes up, in [0, 1]."""
        if self.hard:
            return self.up()
        return (torch.sigmoid(self.logits) * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)

    def indecision(self, beta: float) -> Tensor:
        """sum of 1 - |2 h - 1|^beta: 0 when every weight has decided (eq. 24)."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def decided(self, margin: float = 0.02) -> float:
        """Share of the weights that are within ``margin`` of going down or up: the others are cut off by hardening."""
        return ((2 * self.share() - 1).abs() >= 1 - 2 * margin).float().mean().item()

    def codes(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """Codes of w, whole numbers in float32 of its shape: of what V leans to, also before rounding is hard."""
        return self._codes(w, quantizer, self.up())

    def forward(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """The values of the codes of w, between two codes where rounding is soft; only V takes a gradient."""
        scale, zero_point = (t.detach() for t in quantizer.qparams(w))
        return dequantize(self._codes(w, quantizer, self.share()), scale, zero_point)

    def _codes(self, w: Tensor, quantizer: Quantizer, share: Tensor) -> Tensor:
        scale, zero_point = (t.detach() for t in quantizer.qparams(w))
        down = (w.detach().float() / scale).floor()
        return (down + share + zero_point).clamp(quantizer.spec.qmin, quantizer.spec.qmax)

    def extra_repr(self) -> str:
        return f"{math.prod(self.logits.shape)} weights"


def annealed_beta(progress: float, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> float | None:
    """The exponent of :meth:`AdaptiveRounding.indecision` while rounding trains (AdaRound, section 3; BRECQ's figures).

    Args:
        progress: of the training, in [0, 1).
        warmup: share of it without the regularizer.
        start, end: beta afterwards, on a straight line: at first it acts on weights that have nearly decided alone.

    Returns:
        beta; None during the warm-up.
    """
    if progress < warmup:
        return None
    return start + (end - start) * (progress - warmup) / (1 - warmup)


class StoredRounding(nn.Module):
    """Codes that an algorithm has chosen as a whole (GPTQ), whatever w is; to the nearest until then.

    Args:
        shape: of the weight.
    """

    stored: Tensor
    known: Tensor

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.register_buffer("stored", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("known", torch.tensor(False))

    @property
    def calibrated(self) -> bool:
        """Whether codes have been stored, rather than needed: rounding to the nearest always works."""
        return True

    def store(self, codes: Tensor) -> None:
        """Use these codes, whole numbers from qmin to qmax in the shape of the weight, from now on."""
        self.stored.copy_(codes)
        self.known.fill_(True)

    def codes(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """The stored codes, float32; those of w while there are none."""
        return self.stored.float() if self.known else quantizer.quantize(w)

    def forward(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """The values of the codes."""
        return dequantize(self.codes(w, quantizer), *quantizer.qparams(w))


def rounding_of(kind: RoundingKind, shape: torch.Size) -> AdaptiveRounding | StoredRounding | None:
    """The module that rounds a weight of a shape; None for rounding to the nearest."""
    if kind == "nearest":
        return None
    return AdaptiveRounding(shape) if kind == "adaptive" else StoredRounding(shape)
