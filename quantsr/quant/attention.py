"""Attention with both matrix products quantized (PassionSR, section 3.3):

    Qa(q d_qk) Qa(k / d_qk)^T / sqrt(c)   and   Qa(p d_vw) Qa(v / d_vw),   p the softmax

d_qk scales head channels, d_vw keys; both leave the products as they are without quantization. Here the products are
simulated; :mod:`quantsr.quant.integer_attention` computes them with integers.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantsr.quant.layer import Mode
from quantsr.quant.observer import Scale
from quantsr.quant.quantizer import Quantizer
from quantsr.quant.recipe import AttentionRecipe

CHUNK = 2**21
"""Attention probabilities held at a time: memory grows with the tokens, not with their square. 8 MiB in float32 stay in
the caches of a CPU during the many element-wise steps; with 32 MiB they take twice the time."""


class PairScale(Scale):
    """A scale d for one axis of a product's two factors: a d and b / d.

    Args:
        alpha: initial d = max|b|^alpha / max|a|^alpha, averaged over calibration batches.
        size: length of the axis; 0 if it is known only from data (the number of keys), see :meth:`allocate`. A scale
            meets another length later when images of another size come: it is then resampled linearly (our choice; any
            positive scale leaves the product as it is).
        momentum: weight of the past in the running average (PassionSR: 0.1 for the new).
    """

    def __init__(self, alpha: float, size: int = 0, momentum: float = 0.9):
        super().__init__(size, momentum)
        self.alpha = alpha

    def allocate(self, size: int) -> None:
        """Give the scale its length, once."""
        if not self.scale.numel():
            with torch.inference_mode(False):
                # The same parameter, longer: a stage or an optimizer may hold it already.
                self.scale.data = self.scale.data.new_full((size,), torch.nan)

    def record(self, a: Tensor, b: Tensor) -> None:
        """Note the magnitudes ``(n,)`` of both factors in a calibration batch; :meth:`absorb` takes them into d."""
        self.note(torch.stack([resample(t, self.scale.numel()).clamp(min=1e-5) for t in (a, b)]))

    def absorb(self, pending: Tensor) -> None:
        """Average the magnitudes of one batch over all devices, as ``record`` noted them, into the scale."""
        self.average((pending[1] / pending[0]) ** self.alpha)

    def forward(self, size: int) -> Tensor:
        """d for an axis of ``size``."""
        return resample(self.scale, size)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + "scale")
        if stored is not None:
            self.allocate(stored.numel())
        super()._load_from_state_dict(state_dict, prefix, *args)


def resample(vector: Tensor, size: int) -> Tensor:
    """``(n,)`` to ``(size,)`` by linear interpolation; itself where the lengths agree."""
    if vector.numel() == size and not torch.jit.is_tracing():  # A traced graph is for other sizes, too.
        return vector
    return F.interpolate(vector[None, None], size=size, mode="linear", align_corners=False)[0, 0]


class AttentionProducts(nn.Module):
    """An attention processor for diffusers' ``Attention``: what there is around the two products, and their scales.

    Args:
        recipe: how the products are quantized.
        channel_scale: d_qk; None for none.
        key_scale: d_vw; None for none.
    """

    def __init__(self, recipe: AttentionRecipe, channel_scale: PairScale | None, key_scale: PairScale | None):
        super().__init__()
        self.recipe, self.channel_scale, self.key_scale = recipe, channel_scale, key_scale

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # diffusers reads the names of the arguments that a processor takes from this signature.
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What diffusers' own processor does around the products: normalization, projections, residual connection."""
        unknown = (attention_mask, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
        if any(part is not None for part in unknown):
            raise ValueError("quantized attention takes no mask and no normalization but that of groups")
        residual, spatial = hidden_states, hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = rearrange(hidden_states, "b c h w -> b (h w) c")
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            rearrange(projected, "b n (heads c) -> b heads n c", heads=attn.heads)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        y = attn.to_out[0](rearrange(self.attend(q, k, v), "b heads n c -> b n (heads c)"))
        if spatial is not None:
            y = rearrange(y, "b (h w) c -> b c h w", h=spatial[0])
        if attn.residual_connection:
            y = y + residual
        return y / attn.rescale_output_factor

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(c)) v for queries ``(b, heads, n, c)``, keys and values ``(b, heads, m, c)``."""

    def _scaled(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q d_qk, k / d_qk, v / d_vw and d_vw."""
        if self.channel_scale is None or self.key_scale is None:
            return q, k, v, None
        channel, key = self.channel_scale(q.shape[-1]), self.key_scale(k.shape[-2])
        return q * channel, k / channel, v / key[:, None], key

    def extra_repr(self) -> str:
        return str(self.recipe)


class QuantizedAttention(AttentionProducts):
    """Attention with simulated quantization of both products.

    Args:
        recipe: how.
        head_dim: channels of a head.
    """

    def __init__(self, recipe: AttentionRecipe, head_dim: int):
        alpha = recipe.smoothing
        super().__init__(recipe, *((None, None) if alpha is None else (PairScale(alpha, head_dim), PairScale(alpha))))
        self.head_dim = head_dim
        self.mode: Mode = "quantized"
        self.query, self.key, self.probability, self.value = (Quantizer(recipe.act, axis=-1) for _ in range(4))

    @property
    def calibrated(self) -> bool:
        """Whether all its ranges and scales are known."""
        return all(child.calibrated for child in self.children())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.key_scale is not None:
            self.key_scale.allocate(k.shape[-2])
        if self.mode != "quantized":
            if self.mode != "full_precision":
                self._observe(q, k, v)
            return F.scaled_dot_product_attention(q, k, v)
        return self.products(*self._scaled(q, k, v)).to(q.dtype)

    def products(self, q: Tensor, k: Tensor, v: Tensor, key_scale: Tensor | None) -> Tensor:
        """Both products, quantized, of factors that are scaled already; ``key_scale`` is that of the probabilities."""
        q, k, v = self.query(q), self.key(k), self.value(v)

        def weigh(part: Tensor) -> Tensor:
            p = _softmax(part, k)
            return self.probability(p if key_scale is None else p * key_scale).to(v.dtype) @ v

        return _by_chunks(weigh, q, k.shape[-2])

    @torch.no_grad()
    def _observe(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        if self.mode == "observe_smoothing":
            if self.channel_scale is not None and self.key_scale is not None:
                largest = torch.zeros(k.shape[-2], device=q.device)
                for part in _chunks(q, k.shape[-2]):
                    largest = torch.maximum(largest, _softmax(part, k).float().amax((0, 1, 2)))
                self.channel_scale.record(*(t.float().abs().amax((0, 1, 2)) for t in (q, k)))
                self.key_scale.record(largest, v.float().abs().amax((0, 1, 3)))
            return
        q, k, v, key_scale = self._scaled(q, k, v)
        for quantizer, x in ((self.query, q), (self.key, k), (self.value, v)):
            quantizer.record(x)
        for part in _chunks(q, k.shape[-2]):
            p = _softmax(part, k)
            self.probability.record(p if key_scale is None else p * key_scale)


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    """Attention probabilities, normalized in float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.softmax(-1, dtype=torch.float32)


def _chunks(q: Tensor, keys: int) -> tuple[Tensor, ...]:
    """Queries in pieces whose probabilities number at most about ``CHUNK``; all at once where they take no memory."""
    if q.is_meta:
        return (q,)
    per_query = q.shape[0] * q.shape[1] * keys
    return q.split(max(1, CHUNK // per_query), dim=-2)


def _by_chunks(function: Callable[[Tensor], Tensor], q: Tensor, keys: int) -> Tensor:
    """``function`` of every chunk of queries, joined. The backward pass computes probabilities again: none are kept."""
    if not torch.is_grad_enabled():
        pieces = [function(part) for part in _chunks(q, keys)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-2)
    return torch.cat([checkpoint(function, part, use_reentrant=False) for part in _chunks(q, keys)], dim=-2)
