"""Newton-Schulz iteration: the nearest matrix whose singular values are all about 1, by products alone."""

import torch
from torch import Tensor

from bitnet_trainer.optim.products import self_product

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of `a x + b x^3 + c x^5`, which singular values go through. They climb fast from 0 and then stay between
about 0.7 and 1.2 instead of converging to 1; an update needs no better."""

_LEAST_NORM = 1e-7


def newton_schulz(matrices: Tensor, *, symmetric: bool = False) -> Tensor:
    """`U S' V^T` of each `matrix = U S V^T`, S' near the identity; 0 for a matrix of zeros.

    Args:
        matrices: (..., n, m), of one size so that a product of all is one call. Their scales do not matter.
        symmetric: computes half of each product that is symmetric, by a kernel for bfloat16 on CUDA.

    Returns:
        (..., n, m): bfloat16 on CUDA, at least float32 elsewhere, which is what it was computed in.

    Source: arXiv 2502.16982, section 2.1, after Keller Jordan's Muon.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(working_type(matrices)).reshape(-1, *matrices.shape[-2:])
    # The Gram matrix is of the shorter side.
    wide = x.shape[-2] <= x.shape[-1]
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_LEAST_NORM)
    for _ in range(STEPS):
        gram = self_product(x if wide else x.mT, kernel=symmetric)
        # a x is in the product: by itself it would be two more passes over x, and no more exact in bfloat16.
        polynomial = self_product(gram, gram, alpha=c, beta=b, shift=a, kernel=symmetric)
        x = torch.bmm(polynomial, x) if wide else torch.bmm(x, polynomial)
    return x.reshape(matrices.shape)


def working_type(matrices: Tensor) -> torch.dtype:
    """What the iteration over these is computed in."""
    return torch.bfloat16 if matrices.is_cuda else torch.promote_types(matrices.dtype, torch.float32)


def operations(rows: int, columns: int, *, symmetric: bool = False) -> int:
    """Floating-point operations of the iteration's products over one matrix (rows, columns)."""
    short, long = sorted((rows, columns))
    whole_or_half = 1 if symmetric else 2
    grams = whole_or_half * short**2 * (long + short)
    return STEPS * (grams + 2 * short**2 * long)
