"""MinMax, the baseline of all three papers (there: MaxMin): static bounds from calibration data, nothing trained."""

from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits


class MinMax(QuantizationMethod):
    """Extremes of all calibration data: weights per output channel, activations and attention products per tensor.

    Args:
        teacher, bits, parts, observation_steps, attention, seed: see :class:`QuantizationMethod`.
    """

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        weight = AffineSpec(bits.weight, granularity="channel", momentum=None)
        return LayerRecipe(weight=weight, act=AffineSpec(bits.act, momentum=None))

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, momentum=None))

    def stages(self) -> list[Stage]:
        return self.observation_stages()
