"""Number formats: how a tensor is written in b bits. Frozen, validated when built, one spelling per option."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Granularity = Literal["tensor", "channel", "token"]
RangeKind = Literal["minmax", "learned", "step", "dynamic"]

WEIGHT_BITS = range(2, 9)
ACT_BITS = range(2, 17)


@dataclass(frozen=True)
class AffineSpec:
    """Uniform affine quantization to ``bits`` bits: scale and zero point from bounds (see :mod:`quantsr.quant.affine`).

    Args:
        bits: 2 to 16.
        symmetric: signed codes around a zero point of 0; otherwise unsigned codes with a rounded zero point.
        granularity: one set of bounds per ``tensor``, per output ``channel`` (weights) or per ``token`` (activations:
            one for every position, over its channels). A layer can cut the input channels into parts, each with its own
            bounds.
        range: where the bounds come from: ``minmax`` of calibration data, ``learned`` bounds (initialized by it), a
            learned ``step`` (LSQ, arXiv 1902.08153), or ``dynamic``, from the tensor itself at every call.
        momentum: weight of the past in the running average of a static range over calibration batches (PassionSR,
            section 4.1: 0.95); None takes the extremes of all data.
        clipping: shrink the extremes that calibration sees to the fraction of them with the least squared error: at few
            bits, rare outliers are better clipped than given the codes of everything else.
        ratio: of a dynamic range's extremes that are its bounds, in (0, 1]; what lies beyond is clipped (QuaRot, arXiv
            2404.00456, section 5: 0.9).
        as_released: compute as the released code of PassionSR and QuantVSR does, instead of as the papers say: the
            clamp blocks the gradient of both extreme codes; a learned range (PassionSR) takes its zero point from the
            scale of the call before (without gradient to that scale); the scale of any other (QuantVSR) is at least
            1e-4; the branch beside such a weight stays in float32 in the inference form. Only for comparing numbers
            with that code and for students that it calibrated.

    Raises:
        ValueError: bits out of range, an unknown word, a token granularity with static bounds, or a ratio out of range
            or of a range that is not dynamic.
    """

    bits: int
    symmetric: bool = False
    granularity: Granularity = "tensor"
    range: RangeKind = "minmax"
    momentum: float | None = 0.95
    clipping: bool = False
    ratio: float = 1.0
    as_released: bool = False

    def __post_init__(self) -> None:
        if self.bits not in ACT_BITS:
            raise ValueError(f"bits must be {_span(ACT_BITS)}, not {self.bits}")
        for name, words in (("granularity", Granularity), ("range", RangeKind)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name} must be one of {get_args(words)}, not {getattr(self, name)!r}")
        if not 0 < self.ratio <= 1 or (self.ratio < 1 and self.range != "dynamic"):
            raise ValueError(f"ratio is a share of a dynamic range, in (0, 1], not {self.ratio} of {self.range}")
        if self.granularity == "token" and self.range != "dynamic":
            raise ValueError("token granularity needs range='dynamic': the number of tokens is not known before a call")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def __str__(self) -> str:
        sign = "s" if self.symmetric else "u"
        return f"{sign}{self.bits} per {self.granularity}, {self.range}"


@dataclass(frozen=True)
class Bits:
    """The bit widths of a run: ``w4a4`` is ``Bits(4, 4)``.

    Args:
        weight: 2 to 8 (weights are packed in the artefact).
        act: 2 to 16.

    Raises:
        ValueError: a width out of range.
    """

    weight: int
    act: int

    def __post_init__(self) -> None:
        for name, allowed in (("weight", WEIGHT_BITS), ("act", ACT_BITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"bits.{name} must be {_span(allowed)}, not {getattr(self, name)}")

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """``w4a8`` as ``Bits(4, 8)``.

        Raises:
            ValueError: the text is of another form, or a width is out of range.
        """
        match = re.fullmatch(r"w(\d+)a(\d+)", text)
        if match is None:
            raise ValueError(f"bit widths are written like w4a8, not {text!r}")
        return cls(*map(int, match.groups()))

    def at_least(self, bits: int) -> "Bits":
        """The same widths, raised to ``bits`` where they are lower: for layers that stay at 8 bits."""
        return Bits(max(self.weight, bits), max(self.act, bits))

    def __str__(self) -> str:
        return f"w{self.weight}a{self.act}"


def _span(widths: range) -> str:
    return f"a whole number from {widths.start} to {widths.stop - 1}"
