"""Low-rank correction: a trained product U V^T beside a frozen ternary matrix. Source: arXiv 2412.07902."""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankCorrection(nn.Module):
    """`x -> U (V^T x)`, with the parameters u (out, rank) and v (in, rank)."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.u = nn.Parameter(u)
        self.v = nn.Parameter(v)

    @property
    def rank(self) -> int:
        """Columns of u and v."""
        return self.u.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's dtype."""
        return F.linear(F.linear(x, self.v.T.to(x.dtype)), self.u.to(x.dtype))

    def extra_repr(self) -> str:
        """Shown where the model is printed."""
        return f"rank={self.rank}"


def correction_rank(ratio: float, out_features: int, in_features: int) -> int:
    """`max(1, floor(ratio * min(in, out)))`, of the ratio as it is written: 0.29 of 100 is 29."""
    return max(1, math.floor(Fraction(repr(ratio)) * min(out_features, in_features)))


@torch.no_grad()
def residual_correction(residual: Tensor, rank: int) -> LowRankCorrection:
    """The best correction of a rank: the truncated SVD of the residual, its singular values shared equally.

    `U = U_r sqrt(S_r)`, `V = V_r sqrt(S_r)`. Where a singular value is 0 (the weight is ternary already), U
    is 0 and V is not, since with both zero neither would ever have a gradient.

    Args:
        residual: W - Wq (out, in), in float32 or better.
        rank: at most min(out, in).
    """
    left, values, right = torch.linalg.svd(residual, full_matrices=False)
    roots = values[:rank].sqrt()
    u = left[:, :rank] * roots
    v = right[:rank].T * torch.where(roots > 0, roots, 1)
    return LowRankCorrection(u.contiguous(), v.contiguous())


def kaiming_correction(weight: Tensor, rank: int) -> LowRankCorrection:
    """A correction that begins as nothing, for a weight (out, in): V is random (Kaiming uniform), U is 0.

    V is drawn from torch's generator, as a new linear's weight is.
    """
    out_features, in_features = weight.shape
    v = torch.empty(rank, in_features, device=weight.device, dtype=weight.dtype)
    nn.init.kaiming_uniform_(v, a=math.sqrt(5))
    return LowRankCorrection(weight.new_zeros(out_features, rank), v.T.contiguous())
