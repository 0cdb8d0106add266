"""QuaRot (arXiv 2404.00456): a random Hadamard rotation of the input channels spreads outliers over all of them.

    y = Qa(x H) * Qw(H^T W) + b

The paper merges most of its rotations into the weights around them, which the normalization between layers of a
language model lets it do. Here every layer rotates its own input, as the paper's online rotations do: between the
layers of a U-Net there are group normalization and nonlinearities.
"""

from collections.abc import Sequence
from dataclasses import replace

from quantsr.methods.blockwise import BlockwiseMethod
from quantsr.methods.quantization import PARTS
from quantsr.methods.stages import Stage
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class QuaRot(BlockwiseMethod):
    """Symmetric weights per output channel with bounds of least squared error, symmetric activations per token.

    Args:
        teacher, bits, parts, seed: see :class:`QuantizationMethod`.
        observation_steps: calibration batches for the GPTQ of every block.
        attention: the products of attention too. The paper quantizes keys and values alone (a language model's cache).
        gptq: round weights by GPTQ; to the nearest otherwise. The paper reports both (its table of rounding to the
            nearest).
        ratio: of a token's extremes that activations are clipped to (section 5: 0.9).
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = False,
        gptq: bool = True,
        ratio: float = 0.9,
        seed: int = 0,
    ):
        self.gptq, self.ratio = gptq, ratio
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, symmetric=True, granularity="channel", momentum=None, clipping=True),
            act=AffineSpec(bits.act, symmetric=True, granularity="token", range="dynamic", ratio=self.ratio),
            rotation=True,
            rounding="stored" if self.gptq else "nearest",
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, granularity="token", range="dynamic"))

    def stages(self) -> list[Stage]:
        ranges = [replace(stage, steps=min(stage.steps, 1)) for stage in self.observation_stages()]  # Of weights alone.
        return ranges + (self.gptq_stages(self.observation_steps) if self.gptq else [])
