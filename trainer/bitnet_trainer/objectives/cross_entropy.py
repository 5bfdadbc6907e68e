"""Objective `crossEntropy`: how well the next token is predicted."""

import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import (
    CHUNK_TOKENS,
    IGNORED,
    TokenLoss,
    at_least_float32,
    count_targets,
    next_tokens,
    sum_over_chunks,
)


def cross_entropy(logits: Tensor, labels: Tensor, chunk_tokens: int = CHUNK_TOKENS) -> TokenLoss:
    """Shifted cross-entropy: `-log softmax(logits[b, s])[labels[b, s + 1]]`, summed over the tokens.

    Args:
        logits: (B, S, V).
        labels: (B, S), not shifted; positions labelled -100 are not predicted.
        chunk_tokens: how many tokens' float32 values are held at once.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """
    total = sum_over_chunks(
        _sum, logits.flatten(0, 1), next_tokens(labels).flatten(), chunk_tokens=chunk_tokens
    )
    return TokenLoss(total, count_targets(labels))


def _sum(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(logits), targets, ignore_index=IGNORED, reduction="sum")


class CrossEntropyObjective:
    """`crossEntropy` of a run."""

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Cross-entropy of the student on the batch's own, unmasked input."""
        return cross_entropy(batch.student_logits, batch.labels)
