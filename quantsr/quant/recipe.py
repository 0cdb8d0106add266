"""What is done to a layer, as data: methods and baselines differ by their recipes."""

from dataclasses import dataclass, field, replace
from typing import get_args

from quantsr.quant.parts import groups, halves
from quantsr.quant.rounding import RoundingKind
from quantsr.quant.spec import AffineSpec


@dataclass(frozen=True)
class LayerRecipe:
    """How one linear layer or convolution is quantized.

    Args:
        weight, act: number formats of weight and input.
        smoothing: exponent alpha of a scale per input channel, max|x|^alpha / max|W|^alpha; None for none.
        smoothing_weight: exponent of max|W| where it is another (SmoothQuant: 1 - alpha); None for alpha.
        offset: whether smoothing has a learnable offset too (LET of PassionSR; QArtSR's phi has none).
        rotation: rotate the input channels by a random Hadamard matrix.
        rank: rank of a 16-bit low-rank branch; 0 for none.
        update_rank: rank of a trained update of the low-bit weight, merged into it; 0 for none.
        channel_split: cut the input channels into two halves with bounds (and rotation) of their own.
        token_split: of the input, cut axis 1 instead, the tokens of ``(b, n, c)``, as the linear layers of PassionSR's
            released code do by a slip; the weight's halves stay those of channels. Only for students that were
            calibrated so, see :mod:`quantsr.deploy.released`.
        cut: instead, cut them into two parts at this channel, where two tensors were concatenated (Q-Diffusion).
        group_size: instead, cut them into groups of this size for the bounds; None for one group.
        rounding: how the weight becomes codes, see :mod:`quantsr.quant.rounding`.
        bias_alignment: a learnable constant per output channel (LBA of QuantVSR).
        quantize_bias: quantize the bias per tensor to the weight's bits, as PassionSR's code does.
    """

    weight: AffineSpec
    act: AffineSpec
    smoothing: float | None = None
    smoothing_weight: float | None = None
    offset: bool = False
    rotation: bool = False
    rank: int = 0
    update_rank: int = 0
    channel_split: bool = False
    token_split: bool = False
    cut: int | None = None
    group_size: int | None = None
    rounding: RoundingKind = "nearest"
    bias_alignment: bool = False
    quantize_bias: bool = False

    def __post_init__(self) -> None:
        if self.offset and self.smoothing is None:
            raise ValueError("an offset is part of smoothing: give smoothing an exponent (0 for a scale of 1)")
        if self.smoothing_weight is not None and self.smoothing is None:
            raise ValueError("smoothing_weight is part of smoothing: give smoothing an exponent")
        if sum(map(bool, (self.channel_split, self.cut, self.group_size))) > 1:
            raise ValueError("channel_split, cut and group_size all cut the input channels: give one of them")
        if self.token_split and not self.channel_split:
            raise ValueError("a token split goes with a channel split of the weight: give channel_split too")
        if self.rounding not in get_args(RoundingKind):
            raise ValueError(f"rounding must be one of {get_args(RoundingKind)}, not {self.rounding!r}")
        if self.weight.range == "dynamic" or self.weight.granularity == "token":
            raise ValueError("weights have static bounds per tensor or per channel")
        if self.act.granularity == "channel":
            raise ValueError("activations have bounds per tensor or per token: a scale per channel is smoothing")

    def parts(self, channels: int) -> tuple[int, ...]:
        """Sizes of the parts that ``channels`` input channels are cut into.

        Raises:
            ValueError: the cut is not inside them.
        """
        if self.cut:
            if not 0 < self.cut < channels:
                raise ValueError(f"{channels} channels cannot be cut at {self.cut}")
            return self.cut, channels - self.cut
        if self.channel_split:
            return halves(channels)
        return groups(channels, self.group_size) if self.group_size else (channels,)

    def with_bits(self, weight: int, act: int) -> "LayerRecipe":
        """The same recipe at other bit widths."""
        return replace(self, weight=replace(self.weight, bits=weight), act=replace(self.act, bits=act))

    def __str__(self) -> str:
        extras = {
            "smoothing": self.smoothing is not None,
            "offset": self.offset,
            "rotation": self.rotation,
            f"rank {self.rank}": self.rank,
            f"update of rank {self.update_rank}": self.update_rank,
            "channel split": self.channel_split,
            "token split": self.token_split,
            f"cut at {self.cut}": self.cut,
            f"groups of {self.group_size}": self.group_size,
            f"{self.rounding} rounding": self.rounding != "nearest",
            "bias alignment": self.bias_alignment,
            "quantized bias": self.quantize_bias,
        }
        return f"w{self.weight.bits}a{self.act.bits}" + "".join(f", {name}" for name, used in extras.items() if used)


@dataclass(frozen=True)
class AttentionRecipe:
    """How the two matrix products of an attention module are quantized: q k^T, and p v with p the softmax.

    Args:
        act: number format of q, k, v and p, each with a quantizer of its own.
        smoothing: exponent of a scale per head channel (q d, k / d) and per key (p d, v / d); None for none.
    """

    act: AffineSpec
    smoothing: float | None = None

    def __post_init__(self) -> None:
        if self.act.granularity == "channel":
            raise ValueError("attention products have bounds per tensor or per token")
        if self.act.range == "dynamic" and self.act.granularity == "tensor":
            raise ValueError(
                "attention products are computed in pieces: they need static bounds, or dynamic ones per token"
            )

    def __str__(self) -> str:
        return f"a{self.act.bits}" + (", smoothing" if self.smoothing is not None else "")


@dataclass(frozen=True)
class Rule:
    """What happens to the modules whose name matches a pattern.

    Args:
        pattern: shell pattern over full module names; ``*`` matches dots too.
        recipe: for linear layers and convolutions, or for attention modules; None keeps them in full precision.
    """

    pattern: str
    recipe: LayerRecipe | AttentionRecipe | None = field(default=None)
