"""Shapes: how a step is spread over pods and processes in each phase. Pure."""

import math
from fractions import Fraction

from bitnet_crds.errors import Problem
from bitnet_crds.machines import pods_of, processes_of
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
        share = self.micro_batch_size * self.accumulation
        for micro in range(self.micro_batch_size // 2, 0, -1):
            if share % micro == 0:
                return self.model_copy(update={"micro_batch_size": micro, "accumulation": share // micro})
        return None


def shape_of(spec: BitNetRunSpec, index: int, teacher: bool) -> Shape | Problem:
    """The step's spread in phase `index` (from 0), accumulation being whatever makes the global batch come
    out."""
    phase, pods = spec.phases[index], pods_of(spec, index)
    workers, processes = pods.workers, processes_of(pods.gpus_per_worker)
    own = phase.workers.micro_batch_size if phase.workers else None
    micro = own or spec.workers.micro_batch_size
    if own is None and teacher and spec.teacher is not None:
        factor = Fraction(str(spec.teacher.batch_size_factor))
        resized = micro * factor
        if resized.denominator != 1:
            return Problem(
                "spec.teacher.batchSizeFactor",
                f"micro batch {micro} x {spec.teacher.batch_size_factor} is {float(resized):g}, not a whole "
                f"number of sequences (phase {phase.name!r})",
                "Choose a factor, or spec.workers.microBatchSize, so that it is",
            )
        micro = int(resized)
    one_pass = workers * processes * micro
    accumulation, rest = divmod(spec.budget.global_batch_size, one_pass)
    if rest or not accumulation:
        # A mend for this phase must not break the phases with the other micro batch.
        divisor = math.lcm(one_pass, workers * processes * (own or spec.workers.micro_batch_size))
        nearest = max(1, spec.budget.global_batch_size // divisor) * divisor
        return Problem(
            "spec.budget.globalBatchSize",
            f"{spec.budget.global_batch_size} sequences cannot be split over {workers} workers x {processes} "
            f"processes x micro batch {micro} (phase {phase.name!r})",
            f"Write a multiple of {divisor}, such as {nearest}",
        )
    return Shape(
        workers=workers, processes_per_worker=processes, micro_batch_size=micro, accumulation=accumulation
    )
