"""Shapes: how a step is spread over pods and processes in each phase. Pure."""

import math
from fractions import Fraction

from bitnet_crds.errors import Problem
from bitnet_crds.machines import micro_batch_of, pods_of, processes_of
from bitnet_crds.record import Record
from bitnet_crds.spec import BitNetRunSpec


class Shape(Record):
    """How one optimiser step is spread over machines.

    Sequences: workers * processes * micro batch * accumulation.
    """

    workers: int
    processes_per_worker: int
    micro_batch_size: int
    """Sequences in one forward and backward pass of one process."""
    accumulation: int
    """Forward and backward passes of one process in one optimiser step."""

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.workers * self.processes_per_worker

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimiser step."""
        return self.world_size * self.micro_batch_size * self.accumulation

    def halved(self) -> "Shape | None":
        """The same step with half the micro batch and twice the accumulation; None where it is 1 already.

        An odd micro batch becomes the largest below its half that divides a process's share of the step.
        """
        return self.at_most(self.micro_batch_size // 2) if self.micro_batch_size > 1 else None

    def at_most(self, micro_batch_size: int) -> "Shape":
        """The same step with the largest micro batch of at most so many sequences, and at least one."""
        micro = max(size for size in self.micro_batch_sizes() if size <= max(1, micro_batch_size))
        return self.model_copy(update={"micro_batch_size": micro, "accumulation": self.share // micro})

    @property
    def share(self) -> int:
        """Sequences of one process in one optimiser step."""
        return self.micro_batch_size * self.accumulation

    def micro_batch_sizes(self) -> tuple[int, ...]:
        """The micro batches up to this one that divide a process's share of the step, smallest first."""
        share = self.share
        small = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
        sizes = sorted({*small, *(share // size for size in small)})
        return tuple(size for size in sizes if size <= self.micro_batch_size)


def shape_of(spec: BitNetRunSpec, index: int, teacher: bool) -> Shape | Problem:
    """The step's spread in phase `index` (from 0), accumulation being whatever makes the global batch come
    out. Where the micro batch is Auto, it is a process's whole share: more than memory may hold."""
    phase, pods = spec.phases[index], pods_of(spec, index)
    workers, processes = pods.workers, processes_of(pods.gpus_per_worker)
    own = phase.workers.micro_batch_size if phase.workers else None
    written = micro_batch_of(spec, index)
    if written == "Auto":
        share, rest = divmod(spec.budget.global_batch_size, workers * processes)
        if rest or not share:
            return _not_split(spec, index, (workers, processes), 1, 1)
        return Shape(workers=workers, processes_per_worker=processes, micro_batch_size=share, accumulation=1)
    micro = written
    if own is None and teacher and spec.teacher is not None:
        factor = Fraction(str(spec.teacher.micro_batch_factor))
        resized = micro * factor
        if resized.denominator != 1:
            return Problem(
                "spec.teacher.batchSizeFactor",
                f"micro batch {micro} x {spec.teacher.micro_batch_factor} is {float(resized):g}, not a whole "
                f"number of sequences (phase {phase.name!r})",
                "Choose a factor, or spec.workers.microBatchSize, so that it is",
            )
        micro = int(resized)
    accumulation, rest = divmod(spec.budget.global_batch_size, workers * processes * micro)
    if rest or not accumulation:
        return _not_split(spec, index, (workers, processes), micro, written)
    return Shape(
        workers=workers, processes_per_worker=processes, micro_batch_size=micro, accumulation=accumulation
    )


def _not_split(
    spec: BitNetRunSpec, index: int, ranks: tuple[int, int], micro: int, micro_without_teacher: int
) -> Problem:
    """Of a global batch that `ranks` (workers, and processes in each) cannot divide among them."""
    workers, processes = ranks
    # A mend for this phase must not break the phases with the other micro batch.
    divisor = math.lcm(workers * processes * micro, workers * processes * micro_without_teacher)
    nearest = max(1, spec.budget.global_batch_size // divisor) * divisor
    return Problem(
        "spec.budget.globalBatchSize",
        f"{spec.budget.global_batch_size} sequences cannot be split over {workers} workers x {processes} "
        f"processes x micro batch {micro} (phase {spec.phases[index].name!r})",
        f"Write a multiple of {divisor}, such as {nearest}",
    )
