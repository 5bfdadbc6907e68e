"""The rows of the next step, made in a thread while the device is busy with this one."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.data.corpus import MixedSources
from bitnet_trainer.data.cursor import Cursor


@dataclass(frozen=True)
class Wanted:
    """All that the rows of a step follow from, on one rank."""

    cursor: Cursor
    shares: tuple[float, ...]
    micro_batch_size: int
    passed_over: int = 0
    """Global batches before them that nothing is trained on."""


@dataclass(frozen=True)
class StepRows:
    """What one rank trains on in a step."""

    micro_batches: Sequence[Rows]
    """On the CPU."""
    batch: Sequence[SequenceId]
    """The sequences of the whole step, of all ranks."""
    after: Cursor
    """Where training stands in the data when the step is done."""


class Prefetch:
    """Makes a rank's rows, ahead where it is told what will be wanted.

    Rows follow from what is wanted alone, so that a guess that was wrong costs time and changes nothing.
    """

    def __init__(self, corpus: MixedSources, global_batch: int, rank: int, world: int) -> None:
        self._corpus, self._global_batch, self._rank, self._world = corpus, global_batch, rank, world
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming: tuple[Wanted, Future[StepRows]] | None = None

    def ahead(self, wanted: Wanted) -> None:
        """Begins to make these rows; they are kept until `take`."""
        self._coming = wanted, self._thread.submit(self._make, wanted)

    def take(self, wanted: Wanted) -> StepRows:
        """These rows. What went wrong in making them is raised here, whichever thread it went wrong in."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == wanted:
            return coming[1].result()
        return self._make(wanted)

    def close(self) -> None:
        """Ends the thread, when it is done with what it has begun."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, wanted: Wanted) -> StepRows:
        cursor = wanted.cursor.past(wanted.passed_over * self._global_batch, wanted.shares)
        batch, after = self._corpus.take(cursor, self._global_batch, wanted.shares)
        rows = self._corpus.micro_batches(batch, self._rank, self._world, wanted.micro_batch_size)
        return StepRows(tuple(rows), batch, after)
