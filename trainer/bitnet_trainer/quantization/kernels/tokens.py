"""8-bit codes of tokens, each token read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.quantization.codes import MINIMUM_SCALE

WARPS = 4
TO_WHOLE = 1.5 * 2**23
"""Added to a float32 of less than 2^22 and taken away again, it rounds half to even, as torch does."""


def token_codes(x: Tensor, least: float = MINIMUM_SCALE) -> tuple[Tensor, Tensor]:
    """`quantize_activations` of (N, D), contiguous: codes (N, D) int8, and codes a unit (N, 1) float32."""
    rows, width = x.shape
    codes = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    codes_per_unit = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    token_kernel[(rows,)](
        x,
        codes,
        codes_per_unit,
        width,
        least=least,
        to_whole=TO_WHOLE,
        block=triton.next_power_of_2(width),
        num_warps=WARPS,
    )
    return codes, codes_per_unit


@triton.jit
def larger(one, other):
    """NaN where either is: of a token with a NaN `tl.max` would give a number, and all of it would be one."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def to_code(value, unit, to_whole: tl.constexpr):
    """`round(value * unit)`, half to even: the last byte of what is that much above `to_whole`."""
    return (value * unit + to_whole).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def token_kernel(
    x, codes, codes_per_unit, width, least: tl.constexpr, to_whole: tl.constexpr, block: tl.constexpr
):
    """One token a program."""
    row = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, block)
    value = tl.load(x + row + place, mask=place < width, other=0).to(tl.float32)
    largest = larger(tl.reduce(tl.abs(value), 0, larger), least)
    # Divided as torch does, and not by a multiplication with what is nearly the inverse.
    unit = tl.math.div_rn(127.0, largest)
    code = value * unit + to_whole - to_whole
    tl.store(codes + row + place, code.to(tl.int8), mask=place < width)
    tl.store(codes_per_unit + tl.program_id(0), unit)
