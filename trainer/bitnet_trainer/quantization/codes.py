"""The formulas of BitNet b1.58 (arXiv 2402.17764): ternary codes of weights, 8-bit codes of activations."""

from torch import Tensor

from bitnet_trainer.precision import at_least_float32

MINIMUM_SCALE = 1e-5
"""Floor of a mean or maximum that is divided by: a weight or token of zeros quantises to zeros, not NaN."""


def quantize_weights(weight: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ternary codes and the scale of a weight matrix (absmean, per tensor).

    `s = max(mean|W|, 1e-5)`, `codes = clip(round(W/s), -1, 1)`; the quantised weight is `s * codes`.

    Args:
        weight: any shape, floating point.
        mean: `mean|W|`, 0-dim, where `weight` is not all of W.

    Returns:
        codes in {-1, 0, 1}, of the weight's shape and dtype, and the 0-dim scale s, at least float32. Neither
        has a gradient.
    """
    full = at_least_float32(weight.detach())
    # Multiplying by 1/s and dividing again is how transformers rounds: an exported model has the same codes.
    mean = full.abs().mean() if mean is None else mean.to(full.dtype)
    inverse = 1 / mean.clamp(min=MINIMUM_SCALE)
    return (full * inverse).round_().clamp_(-1, 1).to(weight.dtype), 1 / inverse


def quantize_activations(x: Tensor, least: float = MINIMUM_SCALE) -> tuple[Tensor, Tensor]:
    """8-bit codes of each token (absmax), and how many codes make a unit.

    `a = max(max|x|, least)`, `codes = clip(round(127 x/a), -128, 127)`; the quantised token is
    `codes / (127/a)`.

    Args:
        x: (..., D) floating point; each of the leading positions is a token.
        least: floor of a token's largest value; below it, codes get smaller with the token.

    Returns:
        codes (..., D), whole numbers in x's dtype, and `127/a` (..., 1), at least float32, by which codes are
        DIVIDED, as transformers does: multiplying by a/127 rounds otherwise. Neither has a gradient.
    """
    full = at_least_float32(x.detach())
    codes_per_unit = 127 / full.abs().amax(dim=-1, keepdim=True).clamp(min=least)
    return (full * codes_per_unit).round_().clamp_(-128, 127).to(x.dtype), codes_per_unit
