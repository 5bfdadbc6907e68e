"""Ternary codes packed four to a byte, and unpacked times a scale, one pass each."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_CODES = 4
"""In a byte."""
_WIDEST = 256
"""Bytes of a row that a program takes at a time."""


@dataclass(frozen=True)
class Work:
    """What a program does."""

    rows: int = 8
    warps: int = 8


WORK = Work()


def pack(codes: Tensor, work: Work = WORK) -> Tensor:
    """As `bitnet_trainer.quantization.packing.pack_codes`."""
    flat = codes.contiguous().view(-1, codes.shape[-1])
    rows, width = flat.shape
    packed = torch.empty(rows, triton.cdiv(width, _CODES), dtype=torch.uint8, device=codes.device)
    grid, columns = _cut(packed, work.rows)
    _pack[grid](
        flat,
        packed,
        rows,
        width,
        packed.shape[1],
        height=work.rows,
        columns=columns,
        num_warps=work.warps,
        enable_fp_fusion=False,
    )
    return packed.view(*codes.shape[:-1], -1)


def unpack(packed: Tensor, width: int, scales: Tensor, dtype: torch.dtype, work: Work = WORK) -> Tensor:
    """As `bitnet_trainer.quantization.packing.unpack_weights`."""
    flat = packed.contiguous().view(-1, packed.shape[-1])
    weights = torch.empty(len(flat), width, dtype=dtype, device=packed.device)
    grid, columns = _cut(flat, work.rows)
    _unpack[grid](
        flat,
        scales.contiguous(),
        weights,
        len(flat),
        packed.shape[-2],
        width,
        packed.shape[-1],
        height=work.rows,
        columns=columns,
        num_warps=work.warps,
        enable_fp_fusion=False,
    )
    return weights.view(*packed.shape[:-1], width)


def _cut(packed: Tensor, height: int) -> tuple[tuple[int, int], int]:
    """The programs, rows first since there may be very many, and how many bytes of a row each takes."""
    rows, width = packed.shape
    columns = min(_WIDEST, triton.next_power_of_2(width))
    return (triton.cdiv(rows, height), triton.cdiv(width, columns)), columns


@triton.jit
def _tile(rows, width, bytes_in_row, height: tl.constexpr, columns: tl.constexpr):
    """Rows (height, 1), bytes (1, columns) and codes (1, 4 columns) of this program; which are there."""
    row = (tl.program_id(0) * height + tl.arange(0, height))[:, None]
    byte = (tl.program_id(1) * columns + tl.arange(0, columns))[None, :]
    code = (tl.program_id(1) * columns * 4 + tl.arange(0, 4 * columns))[None, :]
    return row, byte, code, (row < rows) & (byte < bytes_in_row), (row < rows) & (code < width)


@triton.jit
def _pack(codes, packed, rows, width, bytes_in_row, height: tl.constexpr, columns: tl.constexpr):
    row, byte, code, bytes_there, codes_there = _tile(rows, width, bytes_in_row, height, columns)
    found = tl.load(codes + row.to(tl.int64) * width + code, mask=codes_there, other=0).to(tl.float32)
    # Beyond a row's end the digit is 0.
    digits = tl.reshape(tl.where(codes_there, found + 1, 0).to(tl.int32), (height, columns, 4))
    shifts = (tl.arange(0, 4) * 2)[None, None, :]
    tl.store(
        packed + row.to(tl.int64) * bytes_in_row + byte,
        tl.sum(digits << shifts, axis=2).to(tl.uint8),
        mask=bytes_there,
    )


@triton.jit
def _unpack(
    packed,
    scales,
    weights,
    rows,
    rows_each,
    width,
    bytes_in_row,
    height: tl.constexpr,
    columns: tl.constexpr,
):
    row, byte, code, bytes_there, codes_there = _tile(rows, width, bytes_in_row, height, columns)
    found = tl.load(packed + row.to(tl.int64) * bytes_in_row + byte, mask=bytes_there, other=0)
    shifts = (tl.arange(0, 4) * 2)[None, None, :]
    digits = (found.to(tl.int32)[:, :, None] >> shifts) & 3
    scale = tl.load(scales + row // rows_each, mask=row < rows, other=0.0)
    values = tl.reshape((digits - 1).to(tl.float32), (height, 4 * columns)) * scale
    tl.store(
        weights + row.to(tl.int64) * width + code,
        values.to(weights.dtype.element_ty),
        mask=codes_there,
    )
