"""int8 x int8 -> int32 on tensor cores, scaled and written once. Imported where there is a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, INNER = 128, 128, 128
WARPS, STAGES = 4, 3
"""Two programs fit on a multiprocessor, so that one multiplies while the other writes: the fastest of those
tried, for inner sizes from 1,024 to 8,192 (benchmarks/gpu/RESULTS.md)."""
GROUPED = 8
"""Tiles of rows that go through all columns together, so that what they share is still in the cache."""


@triton.jit
def product_kernel(
    codes,
    weight,
    out,
    codes_per_unit,
    scale,
    rows,
    columns,
    inner,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    tile_inner: tl.constexpr,
    grouped: tl.constexpr,
):
    """One tile (tile_rows, tile_columns) of `int8_product`'s result a program."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, tile_rows), tl.cdiv(columns, tile_columns)
    first = program // (grouped * across) * grouped
    height = min(down - first, grouped)
    within = program % (grouped * across)
    row = (first + within % height) * tile_rows + tl.arange(0, tile_rows)
    column = (within // height) * tile_columns + tl.arange(0, tile_columns)
    deep = tl.arange(0, tile_inner)
    # Rows beyond the end read the first ones again, and are not written.
    codes += (row % rows)[:, None].to(tl.int64) * inner + deep[None, :]
    weight += (column % columns)[None, :].to(tl.int64) * inner + deep[:, None]
    total = tl.zeros((tile_rows, tile_columns), dtype=tl.int32)
    for start in range(0, inner, tile_inner):
        inside = deep < inner - start
        left = tl.load(codes, mask=inside[None, :], other=0)
        right = tl.load(weight, mask=inside[:, None], other=0)
        total = tl.dot(left, right, total, out_dtype=tl.int32)
        codes += tile_inner
        weight += tile_inner
    # Divided once a row, not once a value.
    factor = tl.load(scale) / tl.load(codes_per_unit + row % rows)
    value = total.to(tl.float32) * factor[:, None]
    place = row[:, None].to(tl.int64) * columns + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def launched(
    codes: Tensor, codes_per_unit: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """`int8_product` on CUDA. Inside torch.compile the kernel is launched by the graph itself."""
    rows, inner = codes.shape
    columns = weight.shape[0]
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS),)
    product_kernel[grid](
        codes,
        weight,
        out,
        codes_per_unit,
        scale,
        rows,
        columns,
        inner,
        tile_rows=ROWS,
        tile_columns=COLUMNS,
        tile_inner=INNER,
        grouped=GROUPED,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out
