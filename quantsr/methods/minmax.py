"""MinMax, the baseline of all three papers (there: MaxMin): static bounds from calibration data, nothing trained."""

from quantsr.methods.quantization import QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits


class MinMax(QuantizationMethod):
    """Weights per output channel, activations and attention products per tensor; running averages of the extremes."""

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(weight=AffineSpec(bits.weight, granularity="channel"), act=AffineSpec(bits.act))

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act))

    def stages(self) -> list[Stage]:
        return self.observation_stages()
