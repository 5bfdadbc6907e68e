"""The largest logit of each tile of queries, from its log-sum-exp alone where that says that it is small."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """How the logits of a head are cut up."""

    queries: int = 128
    keys: int = 64
    warps: int = 8
    stages: int = 3


TILES = Tiles()


def tiles_of(length: int, tiles: Tiles = TILES) -> int:
    """How many tiles a row of so many queries has."""
    return -(-length // _rows(length, tiles))


def _rows(length: int, tiles: Tiles) -> int:
    return min(tiles.queries, int(triton.next_power_of_2(max(length, 16))))


def tile_maxima(
    query: Tensor,
    key: Tensor,
    begins: Tensor | None,
    lse: Tensor | None,
    scale: float,
    threshold: float,
    tiles: Tiles = TILES,
) -> Tensor:
    """As `bitnet_trainer.models.attention_logits.tile_maxima`."""
    batch, heads, length, channels = query.shape
    rows = _rows(length, tiles)
    out = torch.empty(batch, heads, tiles_of(length, tiles), dtype=torch.float32, device=query.device)
    _tile_maxima[(out.shape[2], batch * heads)](
        query,
        key,
        query if begins is None else begins,
        query if lse is None else lse,
        out,
        heads,
        heads // key.shape[1],
        length,
        scale,
        threshold,
        *query.stride(),
        *key.stride(),
        *((0, 0) if begins is None else begins.stride()),
        *((0, 0, 0) if lse is None else lse.stride()),
        documents=begins is not None,
        bounded=lse is not None,
        channels=channels,
        width=max(16, triton.next_power_of_2(channels)),
        rows=rows,
        columns=min(tiles.keys, rows),
        # Tensor cores would round float32's digits away.
        precision="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


@triton.jit
def _tile_maxima(
    query_start,
    key_start,
    begins_start,
    lse_start,
    out_start,
    heads,
    groups,
    length,
    scale,
    threshold,
    query_batch,
    query_head,
    query_row,
    query_column,
    key_batch,
    key_head,
    key_row,
    key_column,
    begins_batch,
    begins_row,
    lse_batch,
    lse_head,
    lse_row,
    documents: tl.constexpr,
    bounded: tl.constexpr,
    channels: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    precision: tl.constexpr,
):
    """One tile of queries of one head against all keys that it may see."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    first = tl.program_id(0) * rows
    places = first + tl.arange(0, rows)
    inside = places < length
    out = out_start + tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)

    lse = tl.full((rows,), float("inf"), dtype=tl.float32)
    if bounded:
        lse = tl.load(
            lse_start + batch * lse_batch + head * lse_head + places * lse_row,
            mask=inside,
            other=float("-inf"),
        )
    largest = tl.max(lse)
    # NaN is lost among numbers; a step that has one in its passes is left out, and clips nothing.
    if largest > threshold:
        steps = tl.arange(0, width)
        there = steps < channels
        query = tl.load(
            query_start
            + batch * query_batch
            + head * query_head
            + places[:, None] * query_row
            + steps[None, :] * query_column,
            mask=inside[:, None] & there[None, :],
            other=0.0,
        )
        begins = tl.zeros((rows,), dtype=tl.int32)
        if documents:
            begins = tl.load(
                begins_start + batch * begins_batch + places * begins_row, mask=inside, other=length
            )
        key_start += batch * key_batch + (head // groups) * key_head
        found = tl.full((rows,), float("-inf"), dtype=tl.float32)
        for start in range(tl.min(begins) // columns * columns, min(first + rows, length), columns):
            others = start + tl.arange(0, columns)
            key = tl.load(
                key_start + others[None, :] * key_row + steps[:, None] * key_column,
                mask=(others < length)[None, :] & there[:, None],
                other=0.0,
            )
            logits = tl.dot(query, key, input_precision=precision) * scale
            seen = (others[None, :] <= places[:, None]) & (others[None, :] >= begins[:, None])
            found = tl.maximum(found, tl.max(tl.where(seen & inside[:, None], logits, float("-inf")), axis=1))
        largest = tl.max(found)
    tl.store(out, largest)
