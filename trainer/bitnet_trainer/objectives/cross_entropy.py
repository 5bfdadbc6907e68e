"""Objective `crossEntropy`: how well the next token is predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import (
    CHUNK_TOKENS,
    TokenLoss,
    count_targets,
    next_tokens,
    sum_over_chunks,
)
from bitnet_trainer.precision import at_least_float32


def cross_entropy_of(
    hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> TokenLoss:
    """Shifted cross-entropy: `-log softmax(head(hidden[b, s]))[labels[b, s + 1]]`, summed over the tokens.

    The head is applied to a chunk of tokens at a time, in the backward pass again, so that logits (B, S, V)
    never exist.

    Args:
        hidden: (B, S, D).
        head: (N, D) -> logits (N, V).
        labels: (B, S), not shifted; positions labelled -100 are not predicted.
        chunk_tokens: N, how many tokens' logits are held at once.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """

    def chunk(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = at_least_float32(head(hidden))
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")

    total = sum_over_chunks(
        chunk, hidden.flatten(0, 1), next_tokens(labels).flatten(), chunk_rows=chunk_tokens
    )
    return TokenLoss(total, count_targets(labels))


def cross_entropy(logits: Tensor, labels: Tensor, chunk_tokens: int = CHUNK_TOKENS) -> TokenLoss:
    """`cross_entropy_of` where the logits (B, S, V) are there already."""
    return cross_entropy_of(logits, lambda logits: logits, labels, chunk_tokens)


@dataclass(frozen=True)
class CrossEntropyObjective:
    """`crossEntropy` of a run: of the text as it is, whatever other objectives see."""

    def capture(self, layers: int) -> Capture:  # noqa: ARG002
        """Nothing."""
        return Capture()

    def count(self, rows: Rows) -> int:
        """The tokens that are predicted."""
        return int(count_targets(rows.labels))

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Cross-entropy of the student."""
        return cross_entropy_of(batch.student.hidden, batch.student.head, batch.rows.labels)
