"""ViDiT-Q (arXiv 2406.02540): bounds of the moment for every token, channels balanced by a scale and a rotation.

    y = Qa((x / s) H) * Qw(H^T (W s)) + b        s = max|x|^alpha / max|W|^(1 - alpha)

The static-dynamic channel balance: s, from calibration data, takes what is always there of the imbalance
between channels; the rotation H takes what changes from step to step.
"""

from collections.abc import Sequence

from quantsr.methods.quantization import PARTS, QuantizationMethod
from quantsr.methods.stages import Stage
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class ViDiTQ(QuantizationMethod):
    """Weights per output channel, activations per token, nothing trained; one width of bits for all layers.

    Args:
        teacher, bits, parts, observation_steps, seed: see :class:`QuantizationMethod`.
        attention: the paper leaves the products of attention in 16 bits.
        alpha: exponent of max|x|. The released configurations have 0.11 for OpenSora and 0.3 for PixArt.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = False,
        alpha: float = 0.11,
        seed: int = 0,
    ):
        self.alpha = alpha
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", momentum=None),
            act=AffineSpec(bits.act, granularity="token", range="dynamic"),
            smoothing=self.alpha,
            smoothing_weight=1 - self.alpha,
            rotation=True,
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, granularity="token", range="dynamic"))

    def stages(self) -> list[Stage]:
        return self.observation_stages()
