"""The precision that sums and scales are computed in, whatever weights and activations are held in."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x itself, or as float32 where it is of a shorter type: long sums and scales need the digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def dtype_of_products(x: Tensor) -> torch.dtype:
    """What products of x are computed in: autocast's type where that is on, as it casts them; else x's."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else x.dtype


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`left @ right` of matrices, in `dtype`, to which it is rounded at once where the device can."""
    if left.is_cuda and left.dtype != dtype == torch.float32:
        return torch.mm(left, right, out_dtype=dtype)
    return torch.mm(left, right).to(dtype)
