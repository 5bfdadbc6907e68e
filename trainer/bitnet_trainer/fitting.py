"""The largest micro batch that fits into memory, found by trying passes over made-up rows, smallest first."""

import gc
import math
from collections.abc import Callable, Mapping
from itertools import takewhile

import torch

from bitnet_crds.plan import PlannedPhase
from bitnet_trainer.batch import Rows
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.optim.shards import own_part
from bitnet_trainer.step import StepInput, Stepper
from bitnet_trainer.stop import StopRequest
from bitnet_trainer.teacher import Teacher

HEADROOM = 0.05
"""Share of the memory that is left free, for what no try shows: a long run breaks memory up into pieces that
are too small, and the ranks' first exchange of gradients makes buffers of its own."""


class Fitting:
    """Tries how many sequences a pass of one phase may have. Every rank makes one, and all try the same."""

    found = 1
    """The largest size that fitted on every rank so far; 1 before any did."""
    roomy = False
    """Whether twice as many sequences as were found would fit on every rank too, by what these took: then
    CUDA graphs, which hold the memory of their passes apart from all else, fit beside it."""

    def __init__(
        self,
        stepper: Stepper,
        phase: PlannedPhase,
        weights: Mapping[str, float],
        objectives: ObjectiveManager,
        teacher: Teacher | None,
        made_up: Callable[[int], Rows],
        stop: StopRequest,
        *,
        sharded: bool,
    ) -> None:
        """
        Args:
            stepper: of the student itself, not in DDP, which would have the others wait for a rank that ran
                out of memory.
            phase: whose shape has the largest micro batch that may be.
            weights: by objective, in the phase's first step: those of a transition run beside its own.
            objectives: the phase's.
            teacher: loaded, where the phase has one.
            made_up: makes so many rows, which take as much memory as any.
            stop: ends the search, between two sizes.
            sharded: whether a pass gathers layers from the other ranks.
        """
        self._stepper, self._shape, self._stop, self._sharded = stepper, phase.shape, stop, sharded
        own = phase.weights
        self._weights = {name: max(weights.get(name, 0.0), own.get(name, 0.0)) for name in {**weights, **own}}
        self._objectives, self._made_up = objectives, made_up
        self._teacher = teacher.without_cache() if teacher is not None else None
        self._ranks = stepper.ranks
        self._memory = DeviceMemory(self._ranks.device)
        self._limit, self._held, self._peak = math.inf, 0, 0
        self._stopped = False

    def search(self, only: int | None = None) -> bool:
        """Goes up the sizes to the first that does not fit, or tries `only` this one; False where a rank was
        asked to stop before that.

        Weights, moments, random states and all that follows from them are afterwards as they were; moments
        that were not there yet are, and 0. Raises torch.OutOfMemoryError where no micro batch is to blame:
        moments do not fit. And where ranks are sharded and a pass does not fit that was foreseen to.
        """
        with torch.random.fork_rng(self._memory.devices):
            self._stepper.rehearse_update()
            self._memory.release()
            self._limit = (1 - HEADROOM) * self._memory.available
            trained = (weight for weight in self._stepper.model.parameters() if weight.requires_grad)
            self._held = self._memory.held + sum(own_part(weight).nbytes for weight in trained)
            sizes = self._shape.micro_batch_sizes() if only is None else (only,)
            for size in takewhile(self._fits, sizes):
                self.found = size
        self._memory.release()
        (crowded,) = self._ranks.total(int(not 0 < self._foreseen(2 * self.found) <= self._limit))
        self.roomy = not crowded
        return not self._stopped

    def _fits(self, size: int) -> bool:
        """Whether a step with micro batches of so many sequences fits on every rank."""
        refused, stops = self._ranks.total(
            int(self._sharded and self._foreseen(size) > self._limit), int(self._stop.requested)
        )
        self._stopped = stops > 0
        if refused or stops:
            return False
        (failed,) = self._ranks.total(int(not self._tried(size)))
        return not failed

    def _foreseen(self, size: int) -> float:
        """The most bytes that a larger size can take, by what the last one that fitted did; 0 before any.

        What passes take beyond weights, moments and gradients is, at its largest, `a * size + b` with b at
        least 0, so it grows no faster than the size.
        """
        return self._held + (self._peak - self._held) * size / self.found if self._peak else 0.0

    def _tried(self, size: int) -> bool:
        """Whether a step fits on this rank, by taking its passes."""
        self._memory.release()
        try:
            self._stepper.rehearse(self._step(size), self._weights)
        except torch.OutOfMemoryError:
            if self._sharded:
                raise  # the others wait in a collective for what this rank does not send any more
            return False
        peak = self._memory.peak
        fits = peak <= self._limit
        if fits:
            self._peak = peak
        return fits

    def _step(self, size: int) -> StepInput:
        # The second micro batch of a step finds the first one's gradients there; more change nothing.
        rows = [self._made_up(size)] * min(2, self._shape.share // size)
        return StepInput(rows, self._objectives, self._objectives.count(rows, self._weights), self._teacher)


class DeviceMemory:
    """A device's memory as this process has it. A CPU's is the machine's: nothing is known, nor limited."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.devices = [device] if device.type == "cuda" else []

    @property
    def available(self) -> float:
        """Bytes that this process may have, with those that it has."""
        if not self.devices:
            return math.inf
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = torch.cuda.get_per_process_memory_fraction(self._device) * total
        return min(free + torch.cuda.memory_reserved(self._device), allowed)

    @property
    def held(self) -> int:
        """Bytes in tensors now."""
        return torch.cuda.memory_allocated(self._device) if self.devices else 0

    @property
    def peak(self) -> int:
        """The most bytes in tensors since `release`."""
        return torch.cuda.max_memory_allocated(self._device) if self.devices else 0

    def release(self) -> None:
        """Gives back what no tensor needs any more, and begins to watch for a peak."""
        if self.devices:
            # Autograd's nodes may be in cycles with an error's frames, and hold activations.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
