"""Newton-Schulz iteration: the nearest matrix whose singular values are all about 1, by products alone."""

import torch
from torch import Tensor

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of `a x + b x^3 + c x^5`, which singular values go through. They climb fast from 0 and then stay between
about 0.7 and 1.2 instead of converging to 1; an update needs no better."""

_LEAST_NORM = 1e-7


def newton_schulz(matrix: Tensor) -> Tensor:
    """`U S' V^T` of `matrix = U S V^T`, S' near the identity; 0 for a matrix of zeros.

    Args:
        matrix: (n, m). Its scale does not matter.

    Returns:
        (n, m): bfloat16 on CUDA, at least float32 elsewhere, which is what it was computed in.

    Source: arXiv 2502.16982, section 2.1, after Keller Jordan's Muon.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.promote_types(matrix.dtype, torch.float32))
    # The Gram matrix is of the shorter side.
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / torch.linalg.matrix_norm(x).clamp(min=_LEAST_NORM)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
