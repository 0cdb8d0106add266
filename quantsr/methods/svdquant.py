"""SVDQuant (arXiv 2411.05007): smoothing moves outliers into the weight, a 16-bit branch takes them from there.

    y = L1 (L2 x) + Qa(x / s) * Qw(W s - L1 L2 s) + b        L1 (L2 s) = SVD_r(W s)

Section 4.2; s and the branch are chosen layer by layer, by the error of the layer's output.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from quantsr.errors import UserError
from quantsr.methods.blockwise import BlockwiseMethod
from quantsr.methods.quantization import PARTS
from quantsr.methods.stages import Stage
from quantsr.quant.layer import QuantizedLayer
from quantsr.quant.recipe import AttentionRecipe, LayerRecipe
from quantsr.quant.smoothing_search import (
    Candidate,
    Choice,
    before_first_rise,
    branch_candidates,
    least,
    output_errors,
    put,
    smoothing_candidates,
)
from quantsr.quant.spec import AffineSpec, Bits
from quantsr.teachers.base import Teacher


class SVDQuant(BlockwiseMethod):
    """Search of s, then of the branch, for every layer; the released code leaves both out in residual blocks.

    Weights are symmetric. Inputs have a zero point (our choice), where the released code shifts what follows a SiLU or
    GELU to where it is never negative and then takes unsigned codes: both spend no codes on values that do not occur.
    The search sees inputs of the full-precision model (our choice), at one sampling step a batch.

    Args:
        teacher, bits, parts, observation_steps, seed: see :class:`QuantizationMethod`.
        attention: the paper leaves the products of attention in 16 bits.
        rank: of the branch (section 5.1: 32).
        search_steps: calibration batches that output errors are summed over, in the search of s and of the branch.
        grid: alpha takes ``grid - 1`` values between 0 and 1, beta 0 or 1 - alpha (released code: 20).
        iterations: candidates for the branch, L = SVD(W s - Q(W s - L)) again and again, until the error rises
            (released code: at most 100); 1 for the plain SVD.
        group_size: input channels that share bounds, of a weight's row or of a token (section 5.1: 64); None for all.
        gptq: round the residual by GPTQ (the released code's option).
    """

    def __init__(
        self,
        teacher: Teacher,
        bits: Bits,
        parts: Sequence[str] = PARTS,
        observation_steps: int = 16,
        attention: bool = False,
        rank: int = 32,
        search_steps: int = 16,
        grid: int = 20,
        iterations: int = 100,
        group_size: int | None = None,
        gptq: bool = False,
        seed: int = 0,
    ):
        for name, value in {"rank": rank, "search_steps": search_steps, "grid": grid, "iterations": iterations}.items():
            if value < 1:
                raise UserError(f"method.{name} is at least 1, not {value}")
        self.rank, self.group_size, self.gptq = rank, group_size, gptq
        self.search_steps, self.grid, self.iterations = search_steps, grid, iterations
        super().__init__(teacher, bits, parts, observation_steps, attention, seed)

    def layer_recipe(self, bits: Bits, part: str) -> LayerRecipe:
        return LayerRecipe(
            weight=AffineSpec(bits.weight, symmetric=True, granularity="channel", momentum=None),
            act=AffineSpec(bits.act, granularity="token", range="dynamic"),
            smoothing=1.0,  # With these exponents the scale is max|x|, which the search starts from.
            smoothing_weight=0.0,
            rank=self.rank,
            group_size=self.group_size,
            rounding="stored" if self.gptq else "nearest",
        )

    def attention_recipe(self, bits: Bits, part: str) -> AttentionRecipe:
        return AttentionRecipe(act=AffineSpec(bits.act, granularity="token", range="dynamic"))

    def stages(self) -> list[Stage]:
        magnitudes, ranges = self.observation_stages()
        stages = [magnitudes, replace(ranges, steps=1)]
        stages.append(self.search("smoothing", lambda layer: smoothing_candidates(layer, self.grid), least))
        if self.iterations > 1:
            build = lambda layer: branch_candidates(layer, self.iterations)  # noqa: E731
            stages.append(self.search("branch", build, before_first_rise))
        return stages + (self.gptq_stages(self.search_steps) if self.gptq else [])

    def search(self, name: str, build: Callable[[QuantizedLayer], Sequence[Candidate]], choose: Choice) -> Stage:
        """The stage that sums the output errors of every layer's candidates, and puts one of them in.

        All layers at once: of a candidate only scale and branch are kept (for the UNet of Stable Diffusion at rank 32
        about a twentieth of its weights for each).
        """
        candidates: dict[str, Sequence[Candidate]] = {}

        def of(name: str, layer: QuantizedLayer) -> Sequence[Candidate]:
            # Made again after resuming: they follow from the layer, which stays as it is until the stage is over.
            if name not in candidates:
                candidates[name] = build(layer)
            return candidates[name]

        def note(name: str, layer: QuantizedLayer, x: Tensor) -> Tensor:
            return output_errors(layer, of(name, layer), x)

        def conclude(name: str, layer: QuantizedLayer, errors: Tensor) -> None:
            put(layer, of(name, layer)[choose(errors)])
            del candidates[name]

        return self.sum_stage(f"{name} search", self.search_steps, self.blocks, note, conclude)
