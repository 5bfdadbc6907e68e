"""What every objective is to the manager."""

from typing import Protocol

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.token_loss import TokenLoss


class Objective(Protocol):
    """A loss that is the mean of terms: one a token, a masked token, or a row."""

    def capture(self, layers: int) -> Capture:
        """What it wants kept of the forward pass on clean text, of a student of so many layers.

        Raises BadInput where it speaks of a layer that such a student does not have.
        """

    def count(self, rows: Rows) -> int:
        """How many terms it has in these rows (on the CPU), before any forward pass.

        Counts of all micro batches and ranks are added up first, so that each term of the step weighs the
        same however they are spread.
        """

    def __call__(self, batch: MicroBatch) -> TokenLoss:
        """Its terms' sum, with gradient, and their count, which is `count` of the batch's rows."""
