"""A model's K likeliest tokens at each position, in place of its logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.objectives.head_loss import tokens_at_once
from bitnet_trainer.objectives.kernels.rows import log_sums
from bitnet_trainer.objectives.token_loss import CHUNK_TOKENS


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
    chunk_tokens: int | None = None,
) -> TopK:
    """The K likeliest tokens of `head(hidden)`, whose logits are never held for more than a chunk.

    Args:
        hidden: (..., D).
        head: (N, D) -> logits (N, V).
        k: K; of a vocabulary of fewer tokens all are taken.
        temperature: T > 0, for the normaliser.
        chunk_tokens: N, how many positions' logits are held at once, if it is to be given.

    Returns:
        Of the leading shape of `hidden`; the normaliser is float64 where the logits are.
    """
    parts, rows, size = [], hidden.flatten(0, -2), chunk_tokens or CHUNK_TOKENS
    while len(rows):
        part, token_bytes = _top_of(head(rows[:size]), k, temperature)
        parts.append(part)
        rows = rows[size:]
        size = chunk_tokens or tokens_at_once(rows, token_bytes)
    logits, tokens, normaliser = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    shape = hidden.shape[:-1]
    return TopK(logits.view(*shape, -1), tokens.view(*shape, -1), normaliser.view(shape))


def _top_of(logits: Tensor, k: int, temperature: float) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Of (n, V): its parts of a TopK, and how many bytes a row has."""
    top = logits.topk(min(k, logits.shape[-1]), dim=-1)
    normaliser = log_sums(logits.contiguous(), temperature)
    return (top.values, top.indices, normaliser), logits.shape[-1] * logits.element_size()
