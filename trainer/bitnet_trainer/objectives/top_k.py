"""A model's K likeliest tokens at each position, in place of its logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.objectives.token_loss import CHUNK_TOKENS
from bitnet_trainer.precision import at_least_float32


class TopK(NamedTuple):
    """Without gradient; N or (B, S) positions, sorted by falling logit."""

    logits: Tensor
    """(..., K), as the model put them out, not divided by a temperature."""
    tokens: Tensor
    """(..., K) int64 in memory: their ids."""
    log_normaliser: Tensor
    """(...,) float32: log of the sum over the whole vocabulary of exp(logit / T), for the temperature asked
    for."""


@torch.no_grad()
def top_k_of(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    k: int,
    temperature: float,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TopK:
    """The K likeliest tokens of `head(hidden)`, whose logits are never held for more than a chunk.

    Args:
        hidden: (..., D).
        head: (N, D) -> logits (N, V).
        k: K; of a vocabulary of fewer tokens all are taken.
        temperature: T > 0, for the normaliser.
        chunk_tokens: N, how many positions' logits are held at once.

    Returns:
        Of the leading shape of `hidden`; the normaliser is float64 where the logits are.
    """
    parts = []
    for chunk in torch.split(hidden.flatten(0, -2), chunk_tokens):
        logits = head(chunk)
        top = logits.topk(min(k, logits.shape[-1]), dim=-1)
        normaliser = (at_least_float32(logits) / temperature).logsumexp(-1)
        parts.append((top.values, top.indices, normaliser))
    logits, tokens, normaliser = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    shape = hidden.shape[:-1]
    return TopK(logits.view(*shape, -1), tokens.view(*shape, -1), normaliser.view(shape))
