"""Objective `crossEntropy`: how well the next token is predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.objectives.head_loss import sum_over_tokens
from bitnet_trainer.objectives.kernels.rows import Pull, log_sums
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import TokenLoss, count_targets, next_tokens
from bitnet_trainer.precision import at_least_float32


def cross_entropy_of(
    hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, chunk_tokens: int | None = None
) -> TokenLoss:
    """Shifted cross-entropy: `-log softmax(head(hidden[b, s]))[labels[b, s + 1]]`, summed over the tokens.

    Logits (B, S, V) never exist.

    Args:
        hidden: (B, S, D).
        head: (n, D) -> logits (n, V).
        labels: (B, S), not shifted; positions labelled -100 are not predicted.
        chunk_tokens: n, how many tokens' logits are held at once, if it is to be given.

    Returns:
        Sum in nats and count; 0 and 0 where every label is -100.
    """
    total = sum_over_tokens(
        of_targets, hidden.flatten(0, 1), head, next_tokens(labels).flatten(), chunk_tokens=chunk_tokens
    )
    return TokenLoss(total, count_targets(labels))


def of_targets(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """The `LogitsLoss` of targets (n,) int64: `-log softmax(logits)[target]`, 0 for IGNORED."""
    predicted = targets != IGNORED
    columns = torch.where(predicted, targets, 0)[:, None]
    own = at_least_float32(logits.gather(-1, columns)).squeeze(-1)
    weights = predicted.to(own.dtype)
    pull = Pull(torch.full_like(own, -torch.inf), weights, torch.zeros_like(own)) if gradient else None
    sums = log_sums(logits, 1.0, pull)
    if gradient:
        # Softmax less 1, to all of its digits where it is near 1.
        logits.scatter_(-1, columns, (weights * torch.expm1(own - sums))[:, None].to(logits.dtype))
    return torch.where(predicted, sums - own, 0.0)


def cross_entropy(logits: Tensor, labels: Tensor, chunk_tokens: int | None = None) -> TokenLoss:
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
