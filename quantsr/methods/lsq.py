"""LSQ (arXiv 1902.08153): the step of every quantizer is learned by gradient; here after training, weights fixed.

    x_hat = round(clip(x / s, -Q_N, Q_P)) s          d x_hat / d s = round(x / s) - x / s inside, -Q_N or Q_P outside

The steps s start at 2 mean|x| / sqrt(Q_P) (section 2.1), and their gradient is scaled by 1 / sqrt(N Q_P) (section 2.2),
see :mod:`quantsr.quant.quantizer`. The paper trains steps and weights together for its task. As a baseline of
post-training quantization the weights stay the teacher's, and the steps learn its outputs.
"""

from collections.abc import Sequence

from quantsr.methods.quantization import PARTS, QuantizationMethod
from quantsr.methods.stages import Group, Stage, cosine
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class LSQ(QuantizationMethod):
    """Learned steps: one per output channel of weights, one per activation and per factor of an attention product.

    The paper has one step a layer for weights; one per channel is what the other methods here have (our choice).
    Its activations follow a ReLU and have unsigned codes, Q_N = 0. Those of diffusion models reach a little below 0
    (SiLU) or as far below as above (normalized inputs of attention): codes have a zero point, fixed after
    calibration, so that Q_N is what each activation needs (our choice; signed codes throughout would waste almost a
    bit after SiLU).
    Steps of attention products start at the bounds of least squared error (our choice; the paper knows no attention):
    most probabilities are near 0, and 2 mean|p| / sqrt(Q_P) would clip all that matter.

    Args:
        teacher, bits, parts, observation_steps, attention, seed: see :class:`QuantizationMethod`.
        steps: training steps, all parts together.
        lr: Adam's learning rate, relative to each step's size. The paper: SGD at 1e-2 for all layers. Unlike those of
            its networks, activations here differ by orders of magnitude (our choice). Adam divides most of the
            gradient's scale out again.
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = True,
        steps: int = 1000,
        lr: float = 1e-2,
        seed: int = 0,
    ):
        self.training_steps, self.lr = steps, lr
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, symmetric=True, granularity="channel", range="step"),
            act=AffineSpec(bits.act, range="step"),
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="step", clipping=True))

    def stages(self) -> list[Stage]:
        quantizers = (module for module in self.student.modules() if isinstance(module, Quantizer))
        groups = [Group([parameter for module in quantizers for parameter in module.parameters()], self.lr)]
        training = Stage("steps", self.training_steps, self.distillation_loss, groups, cosine, relative=True)
        return [*self.observation_stages(), training]
