"""The kernels of `rows`: one program a row, float32 inside. Imported where there is a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.objectives.kernels.rows import Pull

BLOCK = 8192
"""Numbers of a row that a program holds at once."""
WARPS = 8


def log_sums(logits: Tensor, temperature: float, pull: Pull | None = None) -> Tensor:
    """As in `rows`, of logits of at most 32 bits."""
    sums = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
    apart, mass, tail = (sums, sums, sums) if pull is None else (part.float().contiguous() for part in pull)
    if len(logits):
        _log_sums[(len(logits),)](
            logits,
            logits.stride(0),
            sums,
            apart,
            mass,
            tail,
            logits.shape[1],
            1 / temperature,
            write=pull is not None,
            block=_block(logits.shape[1]),
            num_warps=WARPS,
        )
    return sums


def divergences(logits: Tensor, goal: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """As in `rows`, of logits of at most 32 bits."""
    found = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
    if len(logits):
        _divergences[(len(logits),)](
            logits,
            logits.stride(0),
            goal,
            goal.stride(0),
            found,
            found if weights is None else weights.float().contiguous(),
            logits.shape[1],
            1 / temperature,
            write=weights is not None,
            block=_block(logits.shape[1]),
            num_warps=WARPS,
        )
    return found


def _block(columns: int) -> int:
    return min(BLOCK, 1 << (columns - 1).bit_length())


@triton.jit
def _scaled(row, here, columns, inverse_temperature):
    x = tl.load(row + here, mask=here < columns, other=float("-inf")).to(tl.float32)
    return x * inverse_temperature


@triton.jit
def _finite(highest):
    """What is taken off before exp: of a row that is all -inf so far, whose difference from it is NaN, 0."""
    return tl.where(highest == float("-inf"), 0.0, highest)


@triton.jit
def _log_sums(
    logits,
    stride,
    sums,
    apart,
    mass,
    tail,
    columns,
    inverse_temperature,
    write: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lanes = tl.arange(0, block)
    highest = float("-inf")
    total = 0.0
    for begin in range(0, columns, block):
        x = _scaled(logits, begin + lanes, columns, inverse_temperature)
        higher = tl.maximum(highest, tl.max(x, 0))
        base = _finite(higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base), 0)
        highest = higher
    found = highest + tl.log(total)
    tl.store(sums + row, found)
    if write:
        share = 1.0 / (1.0 + tl.exp(tl.load(apart + row) - found))
        factor = tl.load(mass + row) * share - tl.load(tail + row)
        base = _finite(found)
        blocks = tl.cdiv(columns, block)
        for number in range(0, blocks):
            # Backwards: the end of the row was read last, and may still be in the cache.
            here = (blocks - 1 - number) * block + lanes
            x = _scaled(logits, here, columns, inverse_temperature)
            gradient = tl.exp(x - base) * factor
            tl.store(logits + here, gradient.to(logits.dtype.element_ty), mask=here < columns)


@triton.jit
def _divergences(
    logits,
    stride,
    goal,
    goal_stride,
    found,
    weights,
    columns,
    inverse_temperature,
    write: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    goal += row * goal_stride
    lanes = tl.arange(0, block)
    highest = float("-inf")
    total = 0.0
    goal_highest = float("-inf")
    goal_total = 0.0
    # The sum of exp(goal) * (goal - own), as far as the goal's highest was taken off.
    crossed = 0.0
    for begin in range(0, columns, block):
        x = _scaled(logits, begin + lanes, columns, inverse_temperature)
        higher = tl.maximum(highest, tl.max(x, 0))
        base = _finite(higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base), 0)
        highest = higher
        y = _scaled(goal, begin + lanes, columns, inverse_temperature)
        higher = tl.maximum(goal_highest, tl.max(y, 0))
        base = _finite(higher)
        shrunk = tl.exp(goal_highest - base)
        outcomes = tl.exp(y - base)
        goal_total = goal_total * shrunk + tl.sum(outcomes, 0)
        crossed = crossed * shrunk + tl.sum(tl.where(y == float("-inf"), 0.0, outcomes * (y - x)), 0)
        goal_highest = higher
    # Highest from highest first: they are near each other, and what is left is small.
    apart = crossed / goal_total - (goal_highest - highest)
    tl.store(found + row, apart - (tl.log(goal_total) - tl.log(total)))
    if write:
        weight = tl.load(weights + row)
        factor = weight / total
        goal_factor = weight / goal_total
        base = _finite(highest)
        goal_base = _finite(goal_highest)
        blocks = tl.cdiv(columns, block)
        for number in range(0, blocks):
            here = (blocks - 1 - number) * block + lanes
            x = _scaled(logits, here, columns, inverse_temperature)
            y = _scaled(goal, here, columns, inverse_temperature)
            gradient = tl.exp(x - base) * factor - tl.exp(y - goal_base) * goal_factor
            tl.store(logits + here, gradient.to(logits.dtype.element_ty), mask=here < columns)
