"""MinMax, the baseline of all three papers (there: MaxMin): static bounds from calibration data, nothing trained."""

from collections.abc import Sequence

from quantsr.methods.quantization import PARTS, QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class MinMax(QuantizationMethod):
    """Extremes of all calibration data: weights per output channel, activations and attention products per tensor.

    Args:
        teacher, bits, parts, observation_steps, seed: see :class:`QuantizationMethod`.
        attention: quantize the products of attention too; False to be compared with methods that do not (QuantVSR).
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = True,
        seed: int = 0,
    ):
        self.attention = attention
        super().__init__(teacher, bits, parts, observation_steps, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        weight = AffineSpec(bits.weight, granularity="channel", momentum=None)
        return LayerRecipe(weight=weight, act=AffineSpec(bits.act, momentum=None))

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe | None:
        return AttentionRecipe(act=AffineSpec(bits.act, momentum=None)) if self.attention else None

    def stages(self) -> list[Stage]:
        return self.observation_stages()
