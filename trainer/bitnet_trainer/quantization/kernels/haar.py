"""Haar weights in kernels: the bands' sums, transform and codes, and the way back, one pass each."""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.quantization.codes import MINIMUM_SCALE

_ROOT = 1 / math.sqrt(2)
_WIDEST = 512
"""Pairs of a row that a program takes at a time: it divides the rows of all common widths."""


@dataclass(frozen=True)
class Work:
    """What a program of each kernel does."""

    sum_pairs: int = 2048
    """At a time, for the sums."""
    sum_turns: int = 8
    """How often."""
    rows: int = 4
    """Of the two other kernels."""
    warps: int = 8


WORK = Work()


def band_sums(weights: Tensor, work: Work = WORK) -> Tensor:
    """Sums of the bands' absolute values, the same each time.

    Args:
        weights: (..., out, in) floating point, `in` even.
        work: of a program.

    Returns:
        (..., 2) float32, of low and high.
    """
    flat = weights.contiguous().view(-1, weights.shape[-2] * weights.shape[-1])
    pairs = flat.shape[1] // 2
    programs = triton.cdiv(pairs, work.sum_pairs * work.sum_turns)
    # No atomic sums, whose order is chance.
    partial = torch.empty(len(flat), 2, programs, dtype=torch.float32, device=weights.device)
    _sums[(programs, len(flat))](
        flat,
        partial,
        pairs,
        root=_ROOT,
        block=work.sum_pairs,
        turns=work.sum_turns,
        num_warps=work.warps,
    )
    return partial.sum(dim=-1).view(*weights.shape[:-2], 2)


def haar_codes(weights: Tensor, work: Work = WORK) -> tuple[Tensor, Tensor]:
    """As `bitnet_trainer.quantization.haar.haar_codes`."""
    rows, width = weights.shape[-2:]
    mean = band_sums(weights, work) / (rows * (width // 2))
    inverses = 1 / mean.clamp(min=MINIMUM_SCALE)
    return codes_of(weights, inverses, work), 1 / inverses


def codes_of(weights: Tensor, inverses: Tensor, work: Work = WORK) -> Tensor:
    """Codes of the bands of weights (..., out, in), given what these are multiplied by, (..., 2)."""
    flat = weights.contiguous().view(-1, *weights.shape[-2:])
    codes = torch.empty(flat.shape, dtype=torch.int8, device=weights.device)
    half, grid, columns = _cut(flat, work)
    _codes[grid](
        flat,
        inverses,
        codes,
        flat.shape[1],
        half,
        root=_ROOT,
        height=work.rows,
        columns=columns,
        num_warps=work.warps,
    )
    return codes.view(weights.shape)


def haar_weights(codes: Tensor, scales: Tensor, dtype: torch.dtype, work: Work = WORK) -> Tensor:
    """As `bitnet_trainer.quantization.haar.haar_weights`."""
    flat = codes.contiguous().view(-1, *codes.shape[-2:])
    weights = torch.empty(flat.shape, dtype=dtype, device=codes.device)
    half, grid, columns = _cut(flat, work)
    _weights[grid](
        flat,
        scales.contiguous(),
        weights,
        flat.shape[1],
        half,
        root=_ROOT,
        height=work.rows,
        columns=columns,
        num_warps=work.warps,
    )
    return weights.view(codes.shape)


def _cut(flat: Tensor, work: Work) -> tuple[int, tuple[int, int, int], int]:
    """Pairs in a row, the programs, and how many pairs of a row each takes."""
    count, rows, width = flat.shape
    half = width // 2
    columns = min(_WIDEST, triton.next_power_of_2(half))
    return half, (triton.cdiv(half, columns), triton.cdiv(rows, work.rows), count), columns


@triton.jit
def _sums(weights, partial, pairs, root: tl.constexpr, block: tl.constexpr, turns: tl.constexpr):
    matrix = tl.program_id(1).to(tl.int64)
    weights += matrix * pairs * 2
    first = tl.program_id(0) * block * turns * 2
    places = tl.arange(0, 2 * block)
    low = tl.zeros((block,), dtype=tl.float32)
    high = tl.zeros((block,), dtype=tl.float32)
    for turn in range(turns):
        at = first + turn * block * 2 + places
        both = tl.load(weights + at, mask=at < pairs * 2, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(both, (block, 2)))
        low += tl.abs((even + odd) * root)
        high += tl.abs((even - odd) * root)
    programs = tl.num_programs(0)
    goal = partial + matrix * 2 * programs + tl.program_id(0)
    tl.store(goal, tl.sum(low))
    tl.store(goal + programs, tl.sum(high))


@triton.jit
def _tile(rows, half, height: tl.constexpr, columns: tl.constexpr):
    """Rows (height, 1), pairs (1, columns) and neighbours (1, 2 columns) of this program; which are there."""
    row = (tl.program_id(1) * height + tl.arange(0, height))[:, None]
    pair = (tl.program_id(0) * columns + tl.arange(0, columns))[None, :]
    place = (tl.program_id(0) * columns * 2 + tl.arange(0, 2 * columns))[None, :]
    return row, pair, place, (row < rows) & (pair < half), (row < rows) & (place < half * 2)


@triton.jit
def _ternary(x):
    """Half to even, as torch rounds: 0.5 is 0."""
    return (x > 0.5).to(tl.int8) - (x < -0.5).to(tl.int8)


@triton.jit
def _codes(
    weights,
    inverses,
    codes,
    rows,
    half,
    root: tl.constexpr,
    height: tl.constexpr,
    columns: tl.constexpr,
):
    matrix = tl.program_id(2).to(tl.int64)
    start = matrix * rows * half * 2
    row, pair, place, pairs_there, places_there = _tile(rows, half, height, columns)
    of_low = tl.load(inverses + matrix * 2)
    of_high = tl.load(inverses + matrix * 2 + 1)
    both = tl.load(weights + start + row * (half * 2) + place, mask=places_there, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(both, (height, columns, 2)))
    goal = codes + start + row * (half * 2) + pair
    tl.store(goal, _ternary((even + odd) * root * of_low), mask=pairs_there)
    tl.store(goal + half, _ternary((even - odd) * root * of_high), mask=pairs_there)


@triton.jit
def _weights(
    codes,
    scales,
    weights,
    rows,
    half,
    root: tl.constexpr,
    height: tl.constexpr,
    columns: tl.constexpr,
):
    matrix = tl.program_id(2).to(tl.int64)
    start = matrix * rows * half * 2
    row, pair, place, pairs_there, places_there = _tile(rows, half, height, columns)
    of_low = tl.load(scales + matrix * 2)
    of_high = tl.load(scales + matrix * 2 + 1)
    source = codes + start + row * (half * 2) + pair
    # Exact products: a sum that is fused with one of them rounds as torch's does.
    low = tl.load(source, mask=pairs_there, other=0).to(tl.float32) * of_low
    high = tl.load(source + half, mask=pairs_there, other=0).to(tl.float32) * of_high
    both = tl.reshape(tl.join((low + high) * root, (low - high) * root), (height, 2 * columns))
    goal = weights + start + row * (half * 2) + place
    tl.store(goal, both.to(weights.dtype.element_ty), mask=places_there)
