"""x x^T of a batch of matrices in one kernel: tiles of the lower triangle are computed, and mirrored."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """How a product is cut up."""

    side: int = 128
    """Rows and columns of a tile of the result."""
    depth: int = 64
    """How much of the sum is taken at a time."""
    warps: int = 4
    stages: int = 4


TILES = Tiles()


def self_product(
    x: Tensor,
    plus: Tensor | None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    shift: float = 0.0,
    tiles: Tiles = TILES,
) -> Tensor:
    """As `bitnet_trainer.optim.products.self_product`."""
    batch, side, depth = x.shape
    out = torch.empty(batch, side, side, dtype=x.dtype, device=x.device)
    added = out if plus is None else plus
    across = triton.cdiv(side, tiles.side)
    # Tiles of one matrix follow each other, so that they find its rows in the cache.
    _self_product[(across * (across + 1) // 2, batch)](
        x,
        added,
        out,
        side,
        depth,
        *x.stride(),
        *added.stride(),
        alpha,
        beta,
        shift,
        adds=plus is not None,
        tile=min(tiles.side, triton.next_power_of_2(max(side, 16))),
        chunk=min(tiles.depth, triton.next_power_of_2(max(depth, 16))),
        num_warps=tiles.warps,
        enable_fp_fusion=False,
        num_stages=tiles.stages,
    )
    return out


@triton.jit
def _self_product(
    x_start,
    added_start,
    out_start,
    side,
    depth,
    x_batch,
    x_row,
    x_column,
    added_batch,
    added_row,
    added_column,
    alpha,
    beta,
    shift,
    adds: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
):
    """One tile of the lower triangle, and its mirror image. Batch and tile are the program's."""
    batch = tl.program_id(1).to(tl.int64)
    number = tl.program_id(0)
    # The tiles of row i begin at i (i + 1) / 2. The root may be off by one where it is rounded.
    row = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > number, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= number, row + 1, row)
    column = number - row * (row + 1) // 2

    rows = row * tile + tl.arange(0, tile)
    columns = column * tile + tl.arange(0, tile)
    steps = tl.arange(0, chunk)
    x_start += batch * x_batch
    left = x_start + rows[:, None] * x_row + steps[None, :] * x_column
    right = x_start + columns[None, :] * x_row + steps[:, None] * x_column
    total = tl.zeros((tile, tile), dtype=tl.float32)
    for done in range(0, depth, chunk):
        there = steps < depth - done
        a = tl.load(left, mask=(rows < side)[:, None] & there[None, :], other=0.0)
        b = tl.load(right, mask=(columns < side)[None, :] & there[:, None], other=0.0)
        total = tl.dot(a, b, total)
        left += chunk * x_column
        right += chunk * x_column
    total *= alpha

    inside = (rows < side)[:, None] & (columns < side)[None, :]
    if adds:
        added_start += batch * added_batch
        added = added_start + rows[:, None] * added_row + columns[None, :] * added_column
        total += beta * tl.load(added, mask=inside, other=0.0).to(tl.float32)
    total += tl.where(rows[:, None] == columns[None, :], shift, 0.0)
    values = total.to(out_start.dtype.element_ty)
    out_start += batch * side * side
    # Of a tile on the diagonal, too, the lower half alone: a product need not be symmetric to the bit.
    lower = inside & (rows[:, None] >= columns[None, :])
    tl.store(out_start + rows[:, None] * side + columns[None, :], values, mask=lower)
    mirrored = (columns < side)[:, None] & (rows < side)[None, :] & (rows[None, :] > columns[:, None])
    tl.store(out_start + columns[:, None] * side + rows[None, :], tl.trans(values), mask=mirrored)
