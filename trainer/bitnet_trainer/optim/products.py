"""Products of matrices with their own transposes: by torch, or by a kernel that computes half of them."""

from importlib import import_module

import torch
from torch import Tensor


def self_product(
    x: Tensor,
    plus: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    shift: float = 0.0,
    kernel: bool = False,
) -> Tensor:
    """`alpha x x^T + beta plus + shift I`, summed in float32 at least.

    Args:
        x: (B, n, k), contiguous or transposed.
        plus: symmetric (B, n, n), or none.
        alpha: factor of the product.
        beta: factor of `plus`.
        shift: factor of the identity I.
        kernel: computes the lower triangle and mirrors it, by Triton.

    Returns:
        (B, n, n), of x's type. Of the kernel, symmetric to the bit.
    """
    if kernel:
        # Imported where it is used: Triton takes long to start, and need not be installed.
        launched: Tensor = import_module("bitnet_trainer.optim.kernels.symmetric").self_product(
            x, plus, alpha=alpha, beta=beta, shift=shift
        )
        return launched
    if plus is None:
        product = x @ x.mT * alpha if alpha != 1 else x @ x.mT
    else:
        product = torch.baddbmm(plus, x, x.mT, beta=beta, alpha=alpha)
    if shift:
        product.diagonal(dim1=-2, dim2=-1).add_(shift)
    return product
