"""Where tensors are, as kernels over many of them are told: a table of addresses on the device."""

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


@triton.jit
def at(table, number):
    """Where a tensor of float32 begins. The host has seen to it that it is aligned."""
    return tl.multiple_of(tl.load(table + number).to(tl.pointer_type(tl.float32)), 16)
