"""Where tensors are, as kernels over many of them are told: a table of addresses on the device, and how they
are cut into blocks."""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor


def addresses(*lists: list[Tensor]) -> Tensor:
    """Addresses of the tensors, (lists, B) int64 on their device, without the host waiting for it."""
    found = torch.tensor([[tensor.data_ptr() for tensor in each] for each in lists])
    return sent(found, lists[0][0].device)


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without the host waiting for it."""
    if device.type != "cuda":
        return table
    return table.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=16)
def blocks_of(lengths: tuple[int, ...], block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How N tensors are cut into P blocks, for each of which there is a program; kept, as it stays the same.

    Returns:
        (P,) int32, the tensor that each block is of; and (2, N) int64, each one's first block and length.
    """
    of_each = torch.tensor([triton.cdiv(length, block) for length in lengths])
    owners = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), of_each)
    blocks = torch.stack((of_each.cumsum(0) - of_each, torch.tensor(lengths)))
    return sent(owners, device), sent(blocks, device)


def multiple_in(lengths: tuple[int, ...]) -> int:
    """Of how many values, as many as are read or written at a time, all lengths are multiples; else 1."""
    return next(many for many in (16, 4, 1) if all(length % many == 0 for length in lengths))


@triton.jit
def at(table, number, kind: tl.constexpr = tl.float32):
    """Where a tensor of that kind begins. The host has seen to it that it is aligned (`suited`)."""
    return tl.multiple_of(tl.load(table + number).to(tl.pointer_type(kind)), 16)


@triton.jit
def part_of(owners, blocks, number, block: tl.constexpr, multiple: tl.constexpr):
    """Whose block a program has of N tensors, where that begins, and how many values are left from there.

    All lengths are multiples of `multiple`. Where that is 1 the mask may end anywhere, and a kernel reads its
    values one by one.
    """
    owner = tl.load(owners + tl.program_id(0))
    begin = (tl.program_id(0) - tl.load(blocks + owner)) * block
    # Said here, since a hint on what a function returns is lost on the way.
    return owner, begin, tl.multiple_of(tl.load(blocks + number + owner) - begin, multiple)
