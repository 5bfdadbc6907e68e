"""What is between the products of queries, keys and values and attention: norms and rotary positions, and the
way back to codes of gradients. An experiment's."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.quantization.int8_training import LEAST_GRADIENT
from bitnet_trainer.quantization.kernels.tokens import TO_WHOLE, larger, to_code

PROGRAMS = 2048
"""Of the way back, each with some tokens: a gain's gradient is added up in a program first."""


def turned(
    x: Tensor, gain: Tensor | None, turns: tuple[Tensor, Tensor], length: int, epsilon: float
) -> Tensor:
    """(T, H, d): RMSNorm by head, where there is a gain, then rotary positions."""
    tokens, heads, channels = x.shape
    out = torch.empty_like(x)
    turned_kernel[(tokens,)](
        x,
        x if gain is None else gain,
        *turns,
        out,
        turns[0].shape[0] != 1,
        length,
        heads,
        epsilon,
        normed=gain is not None,
        channels=channels,
        block=triton.next_power_of_2(heads),
        num_warps=4,
    )
    return out


def turned_back(
    gradients: tuple[Tensor, Tensor, Tensor],
    inputs: tuple[Tensor, Tensor],
    gains: tuple[Tensor | None, Tensor | None],
    turns: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor, Tensor],
    length: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the products get: gradients (T, (H + 2 Hk) d), their codes, codes a unit; and (2, d) for gains."""
    to_q, to_k, to_v = gradients
    tokens, heads, channels = to_q.shape
    key_heads = to_k.shape[1]
    width = (heads + 2 * key_heads) * channels
    before = torch.empty(tokens, width, dtype=to_q.dtype, device=to_q.device)
    codes = torch.empty(tokens, width, dtype=torch.int8, device=to_q.device)
    per_unit = torch.empty(tokens, 1, dtype=torch.float32, device=to_q.device)
    programs = min(tokens, PROGRAMS)
    of_gains = torch.empty(programs, 2, channels, dtype=torch.float32, device=to_q.device)
    first, second = (inputs[0] if gain is None else gain for gain in gains)
    back_kernel[(programs,)](
        to_q,
        to_k,
        to_v,
        *inputs,
        first,
        second,
        *turns,
        *scales,
        before,
        codes,
        per_unit,
        of_gains,
        turns[0].shape[0] != 1,
        length,
        tokens,
        triton.cdiv(tokens, programs),
        heads,
        key_heads,
        epsilon,
        normed=gains[0] is not None,
        channels=channels,
        block=triton.next_power_of_2(heads),
        key_block=triton.next_power_of_2(key_heads),
        least=LEAST_GRADIENT,
        to_whole=TO_WHOLE,
        num_warps=4,
    )
    return before, codes, per_unit, of_gains.sum(dim=0)


@triton.jit
def _halves(place, inside, half: tl.constexpr):
    """Both halves of each head's channels, float32."""
    low = tl.load(place, mask=inside, other=0).to(tl.float32)
    high = tl.load(place + half, mask=inside, other=0).to(tl.float32)
    return low, high


@triton.jit
def _turns(cos, sin, token, many, length, half: tl.constexpr):
    """Cosines and sines of both halves, (1, half) each; rows may have positions of their own."""
    row = tl.where(many, token, token % length) * (2 * half) + tl.arange(0, half)[None, :]
    cos_low, cos_high = _halves(cos + row, True, half)
    sin_low, sin_high = _halves(sin + row, True, half)
    return cos_low, cos_high, sin_low, sin_high


@triton.jit
def turned_kernel(
    x,
    gain,
    cos,
    sin,
    out,
    many,
    length,
    heads,
    epsilon,
    normed: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """One token of `turned` a program."""
    half: tl.constexpr = channels // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, block)[:, None]
    channel = tl.arange(0, half)[None, :]
    place = (token * heads + head) * channels + channel
    inside = head < heads
    low, high = _halves(x + place, inside, half)
    if normed:
        size = tl.sum(low * low + high * high, axis=1)[:, None] / channels
        inverse = tl.rsqrt(size + epsilon)
        low *= inverse * tl.load(gain + channel).to(tl.float32)
        high *= inverse * tl.load(gain + half + channel).to(tl.float32)
    cos_low, cos_high, sin_low, sin_high = _turns(cos, sin, token, many, length, half)
    kind = out.dtype.element_ty
    tl.store(out + place, (low * cos_low - high * sin_low).to(kind), mask=inside)
    tl.store(out + place + half, (high * cos_high + low * sin_high).to(kind), mask=inside)


@triton.jit
def _back(
    gradient,
    x,
    gain,
    token,
    heads,
    epsilon,
    turns,
    normed: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
):
    """A token's way back: gradients of both halves before the norm, and what its gain's get, (half,) each."""
    half: tl.constexpr = channels // 2
    head = tl.arange(0, block)[:, None]
    channel = tl.arange(0, half)[None, :]
    place = (token * heads + head) * channels + channel
    inside = head < heads
    cos_low, cos_high, sin_low, sin_high = turns
    of_low, of_high = _halves(gradient + place, inside, half)
    low = of_low * cos_low + of_high * sin_high
    high = of_high * cos_high - of_low * sin_low
    gain_low = tl.zeros((half,), dtype=tl.float32)
    gain_high = tl.zeros((half,), dtype=tl.float32)
    if normed:
        x_low, x_high = _halves(x + place, inside, half)
        size = tl.sum(x_low * x_low + x_high * x_high, axis=1)[:, None] / channels
        inverse = tl.rsqrt(size + epsilon)
        x_low *= inverse
        x_high *= inverse
        gain_low += tl.sum(low * x_low, axis=0)
        gain_high += tl.sum(high * x_high, axis=0)
        low *= tl.load(gain + channel).to(tl.float32)
        high *= tl.load(gain + half + channel).to(tl.float32)
        along = tl.sum(low * x_low + high * x_high, axis=1)[:, None] / channels
        low = inverse * (low - x_low * along)
        high = inverse * (high - x_high * along)
    return low, high, gain_low, gain_high


@triton.jit
def _largest(low, high):
    return tl.reduce(tl.reduce(larger(tl.abs(low), tl.abs(high)), 1, larger), 0, larger)


@triton.jit
def _put(low, high, scale, unit, before, codes, row, heads, to_whole: tl.constexpr, channels: tl.constexpr):
    """Both halves of all heads, and their codes, to where the token's heads of this kind begin."""
    half: tl.constexpr = channels // 2
    head = tl.arange(0, low.shape[0])[:, None]
    channel = tl.arange(0, half)[None, :]
    place = row + head * channels + channel
    inside = head < heads
    tl.store(before + place, low.to(before.dtype.element_ty), mask=inside)
    tl.store(before + place + half, high.to(before.dtype.element_ty), mask=inside)
    tl.store(codes + place, to_code(low * scale, unit, to_whole), mask=inside)
    tl.store(codes + place + half, to_code(high * scale, unit, to_whole), mask=inside)


@triton.jit
def back_kernel(
    to_q,
    to_k,
    to_v,
    q,
    k,
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
    many,
    length,
    tokens,
    each,
    heads,
    key_heads,
    epsilon,
    normed: tl.constexpr,
    channels: tl.constexpr,
    block: tl.constexpr,
    key_block: tl.constexpr,
    least: tl.constexpr,
    to_whole: tl.constexpr,
):
    """Some tokens of `turned_back` a program."""
    half: tl.constexpr = channels // 2
    of_q, of_k, of_v = tl.load(q_scale), tl.load(k_scale), tl.load(v_scale)
    q_low = tl.zeros((half,), dtype=tl.float32)
    q_high = tl.zeros((half,), dtype=tl.float32)
    k_low = tl.zeros((half,), dtype=tl.float32)
    k_high = tl.zeros((half,), dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * each
    for number in range(0, min(each, tokens - first)):
        token = first + number
        turns = _turns(cos, sin, token, many, length, half)
        a_low, a_high, one, other = _back(
            to_q, q, q_gain, token, heads, epsilon, turns, normed, channels, block
        )
        q_low += one
        q_high += other
        b_low, b_high, one, other = _back(
            to_k, k, k_gain, token, key_heads, epsilon, turns, normed, channels, key_block
        )
        k_low += one
        k_high += other
        head = tl.arange(0, key_block)[:, None]
        channel = tl.arange(0, half)[None, :]
        c_low, c_high = _halves(
            to_v + (token * key_heads + head) * channels + channel, head < key_heads, half
        )
        largest = larger(_largest(a_low, a_high) * of_q, _largest(b_low, b_high) * of_k)
        largest = larger(largest, _largest(c_low, c_high) * of_v)
        unit = tl.math.div_rn(127.0, larger(largest, least))
        row = token * ((heads + 2 * key_heads) * channels)
        _put(a_low, a_high, of_q, unit, before, codes, row, heads, to_whole, channels)
        row += heads * channels
        _put(b_low, b_high, of_k, unit, before, codes, row, key_heads, to_whole, channels)
        row += key_heads * channels
        _put(c_low, c_high, of_v, unit, before, codes, row, key_heads, to_whole, channels)
        tl.store(per_unit + token, unit)
    place = of_gains + tl.program_id(0) * (2 * channels) + tl.arange(0, half)
    tl.store(place, q_low)
    tl.store(place + half, q_high)
    tl.store(place + channels, k_low)
    tl.store(place + channels + half, k_high)
