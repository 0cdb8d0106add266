"""EfficientDM (arXiv 2310.03270): a low-rank update of the weights, quantized with them and trained by distillation.

    y = Qa(x) * Qw(W + F1 F2) + b

The update is merged before quantization: it costs nothing at inference. Its learning rate follows the weight's
quantization step, layer by layer (scale-aware optimization): an update that is small beside the step changes no code.
All steps are learned as well. What the paper leaves open is taken from its authors' code.
"""

from collections.abc import Sequence

from torch.optim import AdamW

from quantsr.methods.quantization import PARTS, QuantizationMethod
from quantsr.methods.stages import Group, Stage, linear
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class EfficientDM(QuantizationMethod):
    """Distillation of each part's output into steps and low-rank updates.

    The authors give every activation one step for each of the denoising steps. A teacher of one step needs no more
    than one; of a video teacher, here one step serves all of its denoising steps (our choice). The authors' code
    trains the zero points of activations too, the paper does not and neither does this. They start from bounds of
    least error, as here (theirs in the norm of 2.4, ours of 2). They leave shortcuts and attention products in full
    precision; here both are quantized as in all methods.

    Args:
        teacher, bits, parts, observation_steps, attention, seed: see :class:`QuantizationMethod`.
        rank: of the update F1 F2, which starts at 0.
        steps: training steps, all parts together (the code: 160 rounds of 100 denoising steps).
        update_lr: AdamW's learning rate for F1 and F2, relative to the mean quantization step of the layer's weight
            (the code: 1 / 2500).
        weight_step_lr: the same for the steps of weights (the code: 1e-6).
        act_step_lr: the same for those of activations (the code: 5e-4).
        relative_lr: make these two relative to each step's size, see :class:`Stage` (the code: no).
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = True,
        rank: int = 32,
        steps: int = 16000,
        update_lr: float = 4e-4,
        weight_step_lr: float = 1e-6,
        act_step_lr: float = 5e-4,
        relative_lr: bool = False,
        seed: int = 0,
    ):
        self.rank, self.training_steps, self.relative_lr = rank, steps, relative_lr
        self.update_lr, self.weight_step_lr, self.act_step_lr = update_lr, weight_step_lr, act_step_lr
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, granularity="channel", range="step", clipping=True),
            act=AffineSpec(bits.act, range="step", clipping=True),
            update_rank=self.rank,
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, range="step", clipping=True))

    def stages(self) -> list[Stage]:
        training = Stage(
            "distillation",
            self.training_steps,
            self.distillation_loss,
            self.groups(),
            schedule=linear,
            relative=self.relative_lr,
            optimizer=AdamW,
        )
        return [*self.observation_stages(), training]

    def groups(self) -> list[Group]:
        """Updates, each relative to the steps of its weight; the steps of weights; all other steps."""
        layers = [module for module in self.student.modules() if isinstance(module, QuantizedLayer)]
        updates = [
            Group([*layer.update.parameters()], self.update_lr, reference=layer.weight_quantizer.scale)
            for layer in layers
            if layer.update is not None
        ]
        of_weights = [layer.weight_quantizer for layer in layers]
        others = [m for m in self.student.modules() if isinstance(m, Quantizer) and m not in set(of_weights)]
        return [
            *updates,
            Group([quantizer.scale for quantizer in of_weights], self.weight_step_lr),
            Group([quantizer.scale for quantizer in others], self.act_step_lr),
        ]
