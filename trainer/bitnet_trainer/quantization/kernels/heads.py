"""What is between the products of queries, keys and values and attention: norms by head and rotary positions
on the way there, both and the codes of gradients on the way back. Each value is read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.quantization.int8_training import LEAST_GRADIENT
from bitnet_trainer.quantization.kernels.tokens import TO_WHOLE, larger, to_code

WARPS = 4224
"""Of all programs of the way back together, 32 for each of an H100's multiprocessors, and half of them with
norms, which take twice the registers. A program has many tokens, so that what gains get is added up in it."""


def turned(
    heads: tuple[Tensor, Tensor],
    gains: tuple[Tensor, Tensor] | None,
    turns: tuple[Tensor, Tensor],
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """`heads_training.turned` of (N, H, d) and (N, Hk, d), contiguous."""
    queries, keys = heads
    tokens, many, channels = queries.shape
    key_heads = keys.shape[1]
    out = torch.empty_like(queries), torch.empty_like(keys)
    block = triton.next_power_of_2(many + key_heads)
    turned_kernel[(tokens,)](
        *heads,
        *(gains or heads),
        *turns,
        *out,
        *(each.stride(1) for each in turns),
        turns[0].shape[1],
        many,
        key_heads,
        by_row=turns[0].shape[0] > 1,
        epsilon=epsilon,
        normed=gains is not None,
        channels=channels,
        block=block,
        num_warps=warps(block * channels),
    )
    return out


def turned_back(
    gradients: tuple[Tensor, Tensor, Tensor],
    heads: tuple[Tensor, Tensor],
    gains: tuple[Tensor, Tensor] | None,
    turns: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor, Tensor],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`heads_training.turned_back` of (N, H, d) and (N, Hk, d), contiguous: the parts of `HeadGradients`."""
    tokens, many, channels = heads[0].shape
    key_heads = heads[1].shape[1]
    device = heads[0].device
    width = (many + key_heads) * channels
    before = torch.empty(tokens, width, dtype=heads[0].dtype, device=device)
    codes = torch.empty(tokens, width + key_heads * channels, dtype=torch.int8, device=device)
    per_unit = torch.empty(tokens, 1, dtype=torch.float32, device=device)
    block = triton.next_power_of_2(many + 2 * key_heads)
    num_warps = warps(block * channels)
    programs = min(tokens, WARPS // num_warps // (1 if gains is None else 2))
    of_gains = torch.empty(programs, 2, channels, dtype=torch.float32, device=device)
    turned_back_kernel[(programs,)](
        *gradients,
        *heads,
        *(gains or heads),
        *turns,
        *scales,
        before,
        codes,
        per_unit,
        of_gains,
        *(each.stride(1) for each in turns),
        turns[0].shape[1],
        tokens,
        many,
        key_heads,
        by_row=turns[0].shape[0] > 1,
        epsilon=epsilon,
        normed=gains is not None,
        channels=channels,
        block=block,
        least=LEAST_GRADIENT,
        to_whole=TO_WHOLE,
        num_warps=num_warps,
    )
    return before, codes, per_unit, of_gains.sum(dim=0)


def warps(values: int) -> int:
    """Of a program that has so many at a time: 16 a thread, so that eight of each half are one load."""
    return min(max(values // 512, 1), 32)


@triton.jit
def _places(queries, keys, values, token, head, heads, key_heads, channels: tl.constexpr):
    """Where the first half of each head's channels is: queries', then keys', then values'."""
    channel = tl.arange(0, channels // 2)[None, :]
    query = queries + (token * heads + head) * channels + channel
    key = keys + (token * key_heads + head - heads) * channels + channel
    value = values + (token * key_heads + head - heads - key_heads) * channels + channel
    return tl.where(head < heads, query, tl.where(head < heads + key_heads, key, value))


@triton.jit
def _halves(places, inside, channels: tl.constexpr):
    """Of each head's channels, float32."""
    low = tl.load(places, mask=inside, other=0).to(tl.float32)
    return low, tl.load(places + channels // 2, mask=inside, other=0).to(tl.float32)


@triton.jit
def _gains(q_gain, k_gain, is_query, channels: tl.constexpr):
    """Of both halves, by head."""
    half: tl.constexpr = channels // 2
    channel = tl.arange(0, half)[None, :]
    low = tl.where(is_query, tl.load(q_gain + channel), tl.load(k_gain + channel))
    high = tl.where(is_query, tl.load(q_gain + half + channel), tl.load(k_gain + half + channel))
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _turn(cos, sin, place, cos_stride, sin_stride, channels: tl.constexpr):
    """Of a position, (1, channels / 2) each."""
    pair = tl.arange(0, channels // 2)[None, :]
    cosine = tl.load(cos + place * cos_stride + pair)
    return cosine.to(tl.float32), tl.load(sin + place * sin_stride + pair).to(tl.float32)


@triton.jit
def _inverse(low, high, epsilon: tl.constexpr, channels: tl.constexpr):
    """1 over the root of the mean square of each head."""
    return tl.rsqrt(tl.sum(low * low + high * high, axis=1)[:, None] / channels + epsilon)


@triton.jit
def turned_kernel(
    queries,
    keys,
    q_gain,
    k_gain,
    cos,
    sin,
    q_out,
    k_out,
    cos_stride,
    sin_stride,
    length,
    heads,
    key_heads,
    by_row: tl.constexpr,
    epsilon: tl.constexpr,
    normed: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """One token of `turned` a program."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, block)[:, None]
    is_turned = head < heads + key_heads
    places = _places(queries, keys, keys, token, head, heads, key_heads, channels)
    low, high = _halves(places, is_turned, channels)
    if normed:
        gain_low, gain_high = _gains(q_gain, k_gain, head < heads, channels)
        inverse = _inverse(low, high, epsilon, channels)
        low *= inverse * gain_low
        high *= inverse * gain_high
    place = token if by_row else tl.program_id(0) % length
    cosine, sine = _turn(cos, sin, place, cos_stride, sin_stride, channels)
    places = _places(q_out, k_out, k_out, token, head, heads, key_heads, channels)
    kind = q_out.dtype.element_ty
    tl.store(places, (low * cosine - high * sine).to(kind), mask=is_turned)
    tl.store(places + channels // 2, (high * cosine + low * sine).to(kind), mask=is_turned)


@triton.jit
def turned_back_kernel(
    to_q,
    to_k,
    to_v,
    queries,
    keys,
    q_gain,
    k_gain,
    cos,
    sin,
    q_scale,
    k_scale,
    v_scale,
    before,
    codes,
    per_unit,
    of_gains,
    cos_stride,
    sin_stride,
    length,
    tokens,
    heads,
    key_heads,
    by_row: tl.constexpr,
    epsilon: tl.constexpr,
    normed: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
    least: tl.constexpr,
    to_whole: tl.constexpr,
):
    """Some tokens of `turned_back` a program."""
    half: tl.constexpr = channels // 2
    head = tl.arange(0, block)[:, None]
    place = head * channels + tl.arange(0, half)[None, :]
    turning, all_heads = heads + key_heads, heads + 2 * key_heads
    is_query, is_turned, inside = head < heads, head < turning, head < all_heads
    scale = tl.where(is_query, tl.load(q_scale), tl.where(is_turned, tl.load(k_scale), tl.load(v_scale)))
    sum_low = tl.zeros((block, half), dtype=tl.float32)
    sum_high = tl.zeros((block, half), dtype=tl.float32)
    if normed:
        gain_low, gain_high = _gains(q_gain, k_gain, is_query, channels)
    for number in range(tl.program_id(0), tokens, tl.num_programs(0)):
        token = tl.cast(number, tl.int64)
        places = _places(to_q, to_k, to_v, token, head, heads, key_heads, channels)
        of_low, of_high = _halves(places, inside, channels)
        cosine, sine = _turn(cos, sin, token if by_row else number % length, cos_stride, sin_stride, channels)
        # Values are not turned.
        cosine, sine = tl.where(is_turned, cosine, 1), tl.where(is_turned, sine, 0)
        low = of_low * cosine + of_high * sine
        high = of_high * cosine - of_low * sine
        if normed:
            places = _places(queries, keys, keys, token, head, heads, key_heads, channels)
            x_low, x_high = _halves(places, is_turned, channels)
            inverse = _inverse(x_low, x_high, epsilon, channels)
            of_low, of_high = low * inverse, high * inverse
            sum_low += of_low * x_low
            sum_high += of_high * x_high
            of_low *= gain_low
            of_high *= gain_high
            along = tl.sum(of_low * x_low + of_high * x_high, axis=1)[:, None] / channels
            along *= inverse * inverse
            low = tl.where(is_turned, of_low - x_low * along, low)
            high = tl.where(is_turned, of_high - x_high * along, high)
        row = before + token * turning * channels + place
        tl.store(row, low.to(before.dtype.element_ty), mask=is_turned)
        tl.store(row + half, high.to(before.dtype.element_ty), mask=is_turned)
        # The scales are positive.
        largest = tl.reduce(larger(tl.abs(low), tl.abs(high)), 1, larger)[:, None] * scale
        unit = tl.math.div_rn(127.0, larger(tl.reduce(largest, None, larger), least))
        row = codes + token * all_heads * channels + place
        tl.store(row, to_code(low, scale * unit, to_whole), mask=inside)
        tl.store(row + half, to_code(high, scale * unit, to_whole), mask=inside)
        tl.store(per_unit + token, unit)
    place = of_gains + tl.program_id(0) * (2 * channels) + tl.arange(0, half)
    # Of values they are zeros, as what stands for their x is.
    tl.store(place, tl.sum(tl.where(is_query, sum_low, 0), axis=0))
    tl.store(place + half, tl.sum(tl.where(is_query, sum_high, 0), axis=0))
    tl.store(place + channels, tl.sum(tl.where(is_query, 0, sum_low), axis=0))
    tl.store(place + channels + half, tl.sum(tl.where(is_query, 0, sum_high), axis=0))
