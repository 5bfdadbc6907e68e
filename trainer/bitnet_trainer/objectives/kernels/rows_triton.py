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
    apart, mass, tail = (sums, sums, sums) if pull is None else (part.contiguous() for part in pull)
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


def _block(columns: int) -> int:
    return min(BLOCK, 1 << (columns - 1).bit_length())


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
    start = logits + row * stride
    lanes = tl.arange(0, block)
    highest = float("-inf")
    total = 0.0
    for begin in range(0, columns, block):
        here = begin + lanes
        x = tl.load(start + here, mask=here < columns, other=float("-inf")).to(tl.float32)
        x = x * inverse_temperature
        higher = tl.maximum(highest, tl.max(x, 0))
        # Where all were -inf so far, their difference from it would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base), 0)
        highest = higher
    found = highest + tl.log(total)
    tl.store(sums + row, found)
    if write:
        share = 1.0 / (1.0 + tl.exp(tl.load(apart + row) - found))
        factor = tl.load(mass + row) * share - tl.load(tail + row)
        base = tl.where(found == float("-inf"), 0.0, found)
        blocks = tl.cdiv(columns, block)
        for number in range(0, blocks):
            # Backwards: the end of the row was read last, and may still be in the cache.
            here = (blocks - 1 - number) * block + lanes
            x = tl.load(start + here, mask=here < columns, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x * inverse_temperature - base) * factor
            tl.store(start + here, gradient.to(logits.dtype.element_ty), mask=here < columns)
