"""A model's K likeliest tokens at each position, in place of its logits."""

from typing import NamedTuple

from torch import Tensor


class TopK(NamedTuple):
    """Without gradient; N or (B, S) positions, sorted by falling logit."""

    logits: Tensor
    """(..., K), as the model put them out, not divided by a temperature."""
    tokens: Tensor
    """(..., K) int64 in memory: their ids."""
    log_normaliser: Tensor
    """(...,) float32: log of the sum over the whole vocabulary of exp(logit / T), for the temperature asked
    for."""
