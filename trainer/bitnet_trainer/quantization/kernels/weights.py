"""Codes of many weights at once, wherever each is: sums, then scales, then what weights are rounded to."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_trainer.kernels.addresses import addresses, at, blocks_of, multiple_in, part_of
from bitnet_trainer.quantization.codes import MINIMUM_SCALE
from bitnet_trainer.quantization.kernels.tokens import TO_WHOLE, larger, to_code

_BLOCK = 4096
_SUMS = 1024


def int8_codes(weights: list[Tensor], codes: list[Tensor], scales: list[Tensor]) -> None:
    """Writes `quantize_weights` of each; the mean is added up in another order.

    Args:
        weights: N of any sizes, as `triton_kernels.suited` has it.
        codes: of their sizes, int8, contiguous and aligned; written.
        scales: N of 0-dim float32, aligned; written.
    """
    device, number = weights[0].device, len(weights)
    lengths = tuple(weight.numel() for weight in weights)
    owners, blocks = blocks_of(lengths, _BLOCK, device)
    table = addresses(weights, codes, scales)
    sums = torch.empty(len(owners), dtype=torch.float32, device=device)
    inverses = torch.empty(number, dtype=torch.float32, device=device)
    cut = {"multiple": multiple_in(lengths), "block": _BLOCK, "num_warps": 8}
    weight_sums[(len(owners),)](table, owners, blocks, sums, number, **cut)
    weight_scales[(number,)](
        table, sums, blocks, inverses, number, least=MINIMUM_SCALE, block=_BLOCK, many_sums=_SUMS, num_warps=4
    )
    weight_codes[(len(owners),)](table, owners, blocks, inverses, number, to_whole=TO_WHOLE, **cut)


@triton.jit
def _weights(table, owners, blocks, number, multiple: tl.constexpr, block: tl.constexpr):
    """A program's block of weights, whose they are, and where they are in there."""
    owner, begin, left = part_of(owners, blocks, number, block, multiple)
    offsets = tl.arange(0, block)
    inside = offsets < left
    return owner, begin + offsets, inside, tl.load(at(table, owner) + begin + offsets, mask=inside, other=0.0)


@triton.jit
def weight_sums(table, owners, blocks, sums, number, multiple: tl.constexpr, block: tl.constexpr):
    """A block's sum of absolute values."""
    _, _, _, weight = _weights(table, owners, blocks, number, multiple, block)
    tl.store(sums + tl.program_id(0), tl.sum(tl.abs(weight), axis=0))


@triton.jit
def weight_scales(
    table,
    sums,
    blocks,
    inverses,
    number,
    least: tl.constexpr,
    block: tl.constexpr,
    many_sums: tl.constexpr,
):
    """A weight's scale, and by what it is multiplied instead of being divided."""
    owner = tl.program_id(0)
    length = tl.load(blocks + number + owner)
    first, many = tl.load(blocks + owner), tl.cdiv(length, block)
    total = tl.zeros((many_sums,), dtype=tl.float32)
    for begin in range(0, many, many_sums):
        places = begin + tl.arange(0, many_sums)
        total += tl.load(sums + first + places, mask=places < many, other=0.0)
    mean = tl.div_rn(tl.sum(total, axis=0), length.to(tl.float32))
    inverse = tl.div_rn(1.0, larger(mean, least))
    tl.store(at(table, 2 * number + owner), tl.div_rn(1.0, inverse))
    tl.store(inverses + owner, inverse)


@triton.jit
def weight_codes(
    table,
    owners,
    blocks,
    inverses,
    number,
    multiple: tl.constexpr,
    to_whole: tl.constexpr,
    block: tl.constexpr,
):
    """A block's codes."""
    owner, places, inside, weight = _weights(table, owners, blocks, number, multiple, block)
    near = tl.clamp(weight * tl.load(inverses + owner), -1.0, 1.0)
    tl.store(at(table, number + owner, tl.int8) + places, to_code(near, 1.0, to_whole), mask=inside)
