"""Queries, keys and values by their codes: what `int8_linear` makes of three linears that read the same
tokens, norms by head and rotary positions included, as one function.

So what is between the products and attention is one pass over memory on the way there, and one on the way
back, where gradients become codes as they are made; the gradient of the tokens is one product.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.precision import at_least_float32, product
from bitnet_trainer.quantization.int8_training import (
    LEAST_GRADIENT,
    Int8Codes,
    dequantized,
    joint_product,
    kept_or_made,
    token_codes,
)
from bitnet_trainer.quantization.kernels.int8_product import int8_product

MOST_VALUES = 16_384
"""Values of a token, the number of its heads rounded up to a power of two: a multiprocessor's registers hold
those of one token, and with norms, which take twice as many, half of it."""

Gains = tuple[Tensor, Tensor] | None
"""(d,) floating point, of RMSNorms over the channels of each query's and of each key's head."""
Turns = tuple[Tensor, Tensor]
"""Cosines and sines (B or 1, S, d / 2) by which each head's channels i and i + d / 2 are turned together. In
memory tokens follow each other at one distance, across rows too, and pairs without any."""


class HeadGradients(NamedTuple):
    """What the backward pass makes of the gradients that attention gives."""

    before: Tensor
    """(N, (H + Hk) d), in the dtype of the heads: of the products that gave queries and keys."""
    codes: Tensor
    """(N, (H + 2 Hk) d) int8: of `before` and the values' gradients, each times its weight's scale."""
    codes_per_unit: Tensor
    """(N, 1) float32."""
    to_gains: Tensor
    """(2, d) at least float32; without gains it says nothing."""


def projected_heads(
    x: Tensor,
    weights: Sequence[Tensor],
    gains: Gains,
    turns: Turns,
    epsilon: float,
    dtype: torch.dtype,
    kept: Sequence[Int8Codes | None] = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads as attention takes them: `int8_linear` of x each, then RMSNorm and RoPE of queries and keys.

    Args:
        x: (B, S, in) floating point.
        weights: (H d, in), (Hk d, in) and (Hk d, in), floating point; they get gradients.
        gains: they get gradients, too; without them there are no norms.
        turns: of d channels.
        epsilon: the norms'.
        dtype: of the products' results, and of the heads.
        kept: the weights' `int8_codes`, where somebody has them.

    Returns:
        Queries (B, S, H, d), keys (B, S, Hk, d) and values (B, S, Hk, d).
    """
    batch, length, _ = x.shape
    found: Sequence[Tensor] = _Heads.apply(
        x.flatten(0, 1), *weights, *(gains or (None, None)), *turns, epsilon, dtype, *kept
    )
    queries, keys, values = (each.view(batch, length, *each.shape[1:]) for each in found)
    return queries, keys, values


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        v_weight: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        epsilon: float,
        dtype: torch.dtype,
        *kept: Int8Codes | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, codes_per_unit = token_codes(x)
        weights = kept_or_made((q_weight, k_weight, v_weight), kept)
        q, k, v = (
            int8_product(tokens, codes_per_unit, *each, dtype).view(len(x), -1, 2 * cos.shape[-1])
            for each in weights
        )
        gains = None if q_gain is None or k_gain is None else (q_gain, k_gain)
        held = [part for each in weights for part in each]
        ctx.save_for_backward(tokens, codes_per_unit, q, k, q_gain, k_gain, cos, sin, *held)
        ctx.epsilon, ctx.of_x, ctx.of_weights = epsilon, x.dtype, q_weight.dtype
        return *turned((q, k), gains, (cos, sin), epsilon), v

    @staticmethod
    def backward(ctx: Any, to_q: Tensor, to_k: Tensor, to_v: Tensor) -> tuple[Tensor | None, ...]:
        tokens, codes_per_unit, q, k, q_gain, k_gain, cos, sin, *held = ctx.saved_tensors
        gains = None if q_gain is None else (q_gain, k_gain)
        gradients = to_q.contiguous(), to_k.contiguous(), to_v.contiguous()
        q_scale, k_scale, v_scale = held[1::2]
        made = turned_back(gradients, (q, k), gains, (cos, sin), (q_scale, k_scale, v_scale), ctx.epsilon)
        to_x = joint_product(made.codes, made.codes_per_unit, held[::2], q.dtype).to(ctx.of_x)
        inputs = dequantized(tokens, codes_per_unit, q.dtype)
        width = q[0].numel()
        parts = made.before[:, :width], made.before[:, width:], gradients[2].flatten(1)
        to_weights = [product(part.T, inputs, ctx.of_weights) for part in parts]
        to_gains = (None, None) if gains is None else made.to_gains.to(q_gain.dtype).unbind()
        return to_x, *to_weights, *to_gains, *(None,) * 7


def turned(heads: tuple[Tensor, Tensor], gains: Gains, turns: Turns, epsilon: float) -> tuple[Tensor, Tensor]:
    """Queries and keys with their norms, where they have gains, and rotary positions, in float32 or better.

    Args:
        heads: (N, H, d) and (N, Hk, d) floating point, contiguous; N is a multiple of S.
        gains: none: no norms.
        turns: of d channels; the row of a token is its number over S.
        epsilon: the norms'.

    Returns:
        Likewise, rounded once.
    """
    if heads[0].is_cuda:
        from bitnet_trainer.quantization.kernels import heads as kernels

        return kernels.turned(heads, gains, turns, epsilon)
    queries, keys = heads
    q_gain, k_gain = gains or (None, None)
    return _turned(queries, q_gain, turns, epsilon), _turned(keys, k_gain, turns, epsilon)


def _turned(x: Tensor, gain: Tensor | None, turns: Turns, epsilon: float) -> Tensor:
    full = at_least_float32(x)
    if gain is not None:
        full = F.rms_norm(full, gain.shape, gain.to(full.dtype), epsilon)
    rows, length, half = turns[0].shape
    cos, sin = (
        each.expand(max(rows, len(x) // length), -1, -1).reshape(len(x), 1, half).to(full.dtype)
        for each in turns
    )
    low, high = full.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def turned_back(
    gradients: tuple[Tensor, Tensor, Tensor],
    heads: tuple[Tensor, Tensor],
    gains: Gains,
    turns: Turns,
    scales: tuple[Tensor, Tensor, Tensor],
    epsilon: float,
) -> HeadGradients:
    """The way back through `turned`, and of values, which it leaves alone.

    Args:
        gradients: (N, H, d), (N, Hk, d) and (N, Hk, d) floating point, contiguous.
        heads: as `turned` had them.
        gains: likewise.
        turns: likewise.
        scales: () float32, of the three weights.
        epsilon: as in `turned`.
    """
    if heads[0].is_cuda:
        from bitnet_trainer.quantization.kernels import heads as kernels

        return HeadGradients(*kernels.turned_back(gradients, heads, gains, turns, scales, epsilon))
    full = [at_least_float32(each) for each in heads]
    to_q, to_k, to_v = (at_least_float32(each) for each in gradients)
    ones = heads[0].new_ones(heads[0].shape[-1], dtype=full[0].dtype)
    q_gain, k_gain = gains or (ones, ones)

    def forward(queries: Tensor, keys: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        return turned((queries, keys), None if gains is None else (given[0], given[1]), turns, epsilon)

    back: Any = torch.func.vjp(forward, *full, q_gain.to(ones.dtype), k_gain.to(ones.dtype))[1]
    of_q, of_k, *to_gains = back((to_q, to_k))
    parts = [each.flatten(1) for each in (of_q, of_k, to_v)]
    scaled = torch.cat([part * scale for part, scale in zip(parts, scales, strict=True)], dim=1)
    before = torch.cat(parts[:2], dim=1).to(heads[0].dtype)
    return HeadGradients(before, *token_codes(scaled, LEAST_GRADIENT), torch.stack(to_gains))
