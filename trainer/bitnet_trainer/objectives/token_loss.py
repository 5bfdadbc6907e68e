"""What every objective returns, and the sums over tokens that they share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bitnet_trainer.batch import IGNORED

CHUNK_TOKENS = 512
"""Tokens whose (tokens, V) float32 values are held at once: 0.3 GB a tensor at V = 152k."""

CHUNK_ELEMENTS = 2**24
"""Float32 values that a tensor may have which is no logits: 64 MiB."""


@dataclass(frozen=True)
class TokenLoss:
    """A loss as sum and count, so that micro batches and ranks add up token by token."""

    total: Tensor
    """Sum over the tokens, 0-dim, in the objective's unit; carries the gradient."""
    tokens: Tensor
    """How many tokens it sums over, 0-dim int64."""

    @property
    def mean(self) -> Tensor:
        """Loss a token, 0-dim; 0 where there is no token."""
        return self.total / self.tokens.clamp(min=1)

    def __add__(self, other: "TokenLoss") -> "TokenLoss":
        return TokenLoss(self.total + other.total, self.tokens + other.tokens)


def next_tokens(labels: Tensor) -> Tensor:
    """What each position is to predict: labels (B, S) moved one to the left, the last of a row IGNORED.

    Moving the labels instead of cutting the logits to (B, S-1, V) spares a copy of the logits.
    """
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    return targets


def count_targets(labels: Tensor) -> Tensor:
    """How many tokens of labels (B, S) are predicted, 0-dim int64: the first of a row never is."""
    return (labels[:, 1:] != IGNORED).sum()


def sum_over_chunks(loss: Callable[..., Tensor], *rows: Tensor, chunk_rows: int) -> Tensor:
    """Adds up `loss` over chunks of rows, each tensor (N, ...) being cut alike along N.

    What `loss` computes inside is dropped after each chunk and computed again in the backward pass, so
    that memory holds the intermediate values of one chunk only.

    Returns:
        0-dim; `loss` returns the same for a chunk.
    """
    # One split has one backward that puts the pieces together; slices would each make a full gradient.
    chunks = zip(*(torch.split(tensor, chunk_rows) for tensor in rows), strict=True)
    sums = [checkpoint(loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(sums).sum()
