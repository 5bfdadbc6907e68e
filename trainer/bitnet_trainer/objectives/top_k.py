"""A model's K likeliest tokens at each position, in place of its logits."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitnet_trainer.objectives.head_loss import tokens_at_once
from bitnet_trainer.objectives.kernels.rows import log_sums
from bitnet_trainer.objectives.token_loss import CHUNK_TOKENS

_LEAST_GROUP = 8
"""Of numbers: smaller ones are not worth their passes."""


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
    values, tokens = largest(logits, min(k, logits.shape[-1]))
    normaliser = log_sums(logits.contiguous(), temperature)
    return (values, tokens, normaliser), logits.shape[-1] * logits.element_size()


def largest(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`rows.topk(k)`, but for which of equal numbers are taken.

    None of a row's K largest is outside the K groups whose own largest are the largest. So a row is read
    once, by group, and `topk`, which reads several times, is given V / g + K g of its V numbers: the fewest
    where g = sqrt(V / K).

    Args:
        rows: (n, V).
        k: K, from 1 to V.

    Returns:
        values (n, K), falling, and their places in the row, (n, K) int64.
    """
    width = rows.shape[-1]
    size = 1 << round(math.log2(width / k) / 2)
    count = width // size
    if size < _LEAST_GROUP:
        values, places = rows.topk(k, dim=-1)
        return values, places
    # A group's numbers are `count` apart, so that neighbouring groups are read side by side.
    grouped = rows[:, : size * count].reshape(-1, size, count)
    groups = grouped.amax(dim=1).topk(k, dim=-1, sorted=False).indices
    chosen = grouped.gather(2, groups[:, None, :].expand(-1, size, -1)).flatten(1)
    # What no whole group has comes after them.
    values, found = torch.cat((chosen, rows[:, size * count :]), dim=-1).topk(k, dim=-1)
    places = found // k * count + groups.gather(-1, found % k)
    return values, torch.where(found < size * k, places, found + size * (count - k))
