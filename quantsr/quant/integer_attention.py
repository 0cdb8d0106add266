"""The integer form of quantized attention: what :mod:`quantsr.quant.attention` simulates, computed with integers.

Both products are of int8 codes, summed in int32 by :mod:`quantsr.kernels`. Between them the softmax is in float32, and
probabilities are quantized after they are normalized, as the simulation does. Inference only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quantsr import kernels
from quantsr.kernels.operands import MOST_BITS, SMALLEST_PROBABILITY
from quantsr.quant.attention import AttentionProducts, QuantizedAttention
from quantsr.quant.precision import keeping_types


class IntegerAttention(AttentionProducts):
    """Attention whose products are computed with integers.

    Its output is that of the simulation up to float rounding. It shares the simulation's scales of channels and keys;
    ``scales`` and ``zeros`` (4, 1) float32 are the number formats of queries, keys, values and probabilities. All that
    stays as it is where the model around it is given another type.

    Args:
        simulated: calibrated attention, which stays as it is.
        backend: see :data:`quantsr.kernels.Backend`.

    Raises:
        ValueError: it has no integer form.
    """

    scales: Tensor
    zeros: Tensor

    def __init__(self, simulated: QuantizedAttention, backend: kernels.Backend = "auto"):
        if (reason := obstacle(simulated)) is not None:
            raise ValueError(f"attention of {simulated.recipe} cannot be computed with integers: {reason}")
        super().__init__(simulated.recipe, simulated.channel_scale, simulated.key_scale)
        self.backend = backend
        scales, zeros = bounds(simulated)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.train(simulated.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerAttention":
        return super()._apply(keeping_types(fn), recurse)

    @torch.no_grad()
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :meth:`AttentionProducts.attend`.

        Raises:
            ValueError: more keys than int32 sums.
        """
        bits, channels, dtype, backend = self.recipe.act.bits, q.shape[-1], q.dtype, self.backend
        q, k, v, key_scale = self._scaled(q, k, v)
        query, key, value = (
            kernels.quantize(factor, scale, zero, bits, (factor.shape[-1],), backend=backend)
            for factor, scale, zero in zip((q, k, v.mT), self.scales, self.zeros, strict=False)
        )
        probabilities = kernels.Probabilities(self.scales[3], self.zeros[3], bits, key_scale)
        return kernels.attention(query, key, value, probabilities, channels, dtype, backend)

    def extra_repr(self) -> str:
        return f"{self.recipe}, integers"


@torch.no_grad()
def bounds(attention: QuantizedAttention) -> tuple[Tensor, Tensor]:
    """Scales and zeros, as kernels count them, of queries, keys, values and probabilities, (4, 1) float32 each."""
    spec, quantizers = attention.recipe.act, (attention.query, attention.key, attention.value, attention.probability)
    x = torch.zeros(1, 1, 1, attention.head_dim, device=next(iter(attention.query.state_dict().values())).device)
    scales, zeros = zip(*(quantizer.part_qparams(x) for quantizer in quantizers), strict=True)
    return torch.stack(scales).float(), torch.stack(zeros).float() - (spec.qmin + 2 ** (spec.bits - 1))


def obstacle(attention: QuantizedAttention) -> str | None:
    """Why attention has no integer form, as the end of a sentence; None if it has one."""
    spec = attention.recipe.act
    if spec.bits > MOST_BITS:
        return f"its factors have {spec.bits} bits, and int8 codes have at most {MOST_BITS}"
    if spec.range == "dynamic":
        return "values with bounds of their own for every token are not summed as codes"
    scales, zeros = bounds(attention)
    if not (zeros[:3] >= -128).logical_and(zeros[:3] <= 127).all():
        return "a range of queries, keys or values does not hold 0"
    largest = 1.0 if attention.key_scale is None else float(attention.key_scale.scale.detach().max())
    if scales[3] < SMALLEST_PROBABILITY * largest:
        return "its probabilities are so small that int32 may not hold sums of their codes"
    return None
