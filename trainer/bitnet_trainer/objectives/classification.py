"""Objective `classification`: which of a few labels a whole sequence has."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import IGNORED, Rows
from bitnet_trainer.errors import BadInput
from bitnet_trainer.last_token import at_last_token
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import TokenLoss
from bitnet_trainer.precision import at_least_float32


def classification_loss(
    hidden: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, classes: Tensor
) -> TokenLoss:
    """`-log softmax(head(h_b))[classes[b]]`, summed over rows, h_b being hidden at row b's last token.

    Args:
        hidden: (B, S, D).
        head: (B, D) -> logits (B, labels).
        tokens: (B, S) bool: where there is a token, and not padding, on either side.
        classes: (B,) int64; a row of IGNORED counts for nothing.

    Returns:
        Sum in nats and count of rows; 0 and 0 where every row is IGNORED.
    """
    logits = at_least_float32(head(at_last_token(hidden, tokens)))
    total = F.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum")
    return TokenLoss(total, (classes != IGNORED).sum())


@dataclass(frozen=True)
class ClassificationObjective:
    """`classification` of a run. Its terms are rows."""

    def capture(self, layers: int) -> Capture:  # noqa: ARG002
        """Nothing besides the end of the forward pass."""
        return Capture()

    def count(self, rows: Rows) -> int:
        """Rows that have a label. Raises BadInput where none could have one."""
        return int((labels_of(rows) != IGNORED).sum())

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Cross-entropy of the labels. Raises BadInput where the rows have none."""
        student = batch.student
        return classification_loss(student.hidden, student.head, batch.rows.tokens, labels_of(batch.rows))


def labels_of(rows: Rows) -> Tensor:
    """(B,) int64. Raises BadInput where the rows have no labels at all."""
    if rows.classes is None:
        raise BadInput(
            "these rows have no labels to classify by; with spec.classification each line of the text has a "
            "`label`"
        )
    return rows.classes
