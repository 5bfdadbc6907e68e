"""Products of matrices with their own transposes: by torch, or by a kernel that computes half of them."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

_LEAST_CAPABILITY = (8, 0)
"""CUDA's, from which on tensor cores multiply bfloat16."""


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether this device runs Triton kernels with products in bfloat16."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
        and find_spec("triton") is not None
    )


def self_product(
    x: Tensor, plus: Tensor | None = None, *, alpha: float = 1.0, beta: float = 0.0, kernel: bool = False
) -> Tensor:
    """`alpha x x^T + beta plus`, summed in float32 at least.

    Args:
        x: (B, n, k), contiguous or transposed.
        plus: symmetric (B, n, n), or none.
        alpha: factor of the product.
        beta: factor of `plus`.
        kernel: computes the lower triangle and mirrors it, on a device that `has_kernels`, or anywhere under
            Triton's interpreter.

    Returns:
        (B, n, n), of x's type. Of the kernel, symmetric to the bit.
    """
    if kernel:
        # Imported where it is used: Triton takes long to start, and need not be installed.
        launched: Tensor = import_module("bitnet_trainer.optim.kernels.symmetric").self_product(
            x, plus, alpha=alpha, beta=beta
        )
        return launched
    if plus is None:
        product = x @ x.mT
        return product if alpha == 1 else product * alpha
    return torch.baddbmm(plus, x, x.mT, beta=beta, alpha=alpha)
