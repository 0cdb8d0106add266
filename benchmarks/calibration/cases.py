"""The rows of the table."""

from dataclasses import dataclass

from torch import nn

from quantsr.quant.attention import PairScale
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.low_rank import LowRank
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.transforms import Smoothing

SMOOTHING, BOUNDS = (Smoothing, PairScale), (Quantizer,)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is measured.
        model: ``full precision``, ``layers``, ``layers and attention`` or ``plain``.
        trains: modules whose own parameters train; of a quantized layer this is its bias alignment.
    """

    name: str
    model: str
    trains: tuple[type[nn.Module], ...] = ()


FROZEN = Case("full precision, frozen weights", "full precision")
PASSIONSR = (
    FROZEN,
    Case("full precision, weights train", "full precision", (nn.Linear, nn.Conv2d)),
    Case("plain eager, smoothing stage, layers", "plain", SMOOTHING),
    Case("plain eager, bounds stage, layers", "plain", BOUNDS),
    Case("quantsr, nothing trains, layers", "layers"),
    Case("quantsr, smoothing stage, layers", "layers", SMOOTHING),
    Case("quantsr, bounds stage, layers", "layers", BOUNDS),
    Case("quantsr, nothing trains, layers and attention", "layers and attention"),
    Case("quantsr, smoothing stage, layers and attention", "layers and attention", SMOOTHING),
    Case("quantsr, bounds stage, layers and attention", "layers and attention", BOUNDS),
)
QUANTVSR = (
    FROZEN,
    Case("plain eager, refinement stage, layers", "plain", (LowRank,)),
    Case("plain eager, bias alignment stage, layers", "plain", (QuantizedLayer,)),
    Case("quantsr, nothing trains, layers", "layers"),
    Case("quantsr, refinement stage, layers", "layers", (LowRank,)),
    Case("quantsr, bias alignment stage, layers", "layers", (QuantizedLayer,)),
)
CASES = {"passionsr": PASSIONSR, "quantvsr": QUANTVSR}
