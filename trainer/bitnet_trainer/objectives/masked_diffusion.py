"""Objective `maskedDiffusion`: how well masked tokens are predicted, in a forward pass of its own."""

from dataclasses import dataclass

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.objectives.cross_entropy import cross_entropy_of
from bitnet_trainer.objectives.masking import Masking
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import TokenLoss, count_targets


@dataclass(frozen=True)
class MaskedDiffusionObjective:
    """`maskedDiffusion` of a run: `-log softmax(logits[b, i - 1])[token i]`, over the masked tokens i.

    The logits are of the masked text, and one position before the token, as a causal model predicts (token
    shift). That is `cross_entropy_of` with the masked tokens as labels. Sources: arXiv 2406.07524, arXiv
    2509.26328.
    """

    masking: Masking

    def capture(self, layers: int) -> Capture:  # noqa: ARG002
        """Nothing."""
        return Capture()

    def count(self, rows: Rows) -> int:
        """The tokens that are masked."""
        return int(count_targets(self.masking(rows).labels))

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Cross-entropy in nats; 0, with a gradient of 0, where no token is masked."""
        masked, student = batch.masked(self.masking)
        return cross_entropy_of(student.hidden, student.head, masked.labels)
