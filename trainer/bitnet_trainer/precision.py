"""The precision that sums and scales are computed in, whatever weights and activations are held in."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x itself, or as float32 where it is of a shorter type: long sums and scales need the digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
