"""Times and memory of steps, in blocks that take turns between the cases."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from cases import Build, Trained, Workload


@dataclass
class Measured:
    """One case's figures."""

    first: float
    """Seconds from a model that is there to the end of its first step, compilation included."""
    resident: int
    """Bytes of weights and moments."""
    blocks: list[float] = field(default_factory=list)
    """Seconds a step, the mean of each block."""
    peak: int = 0
    """Most bytes in tensors, less what other cases hold meanwhile."""
    loss: float = float("nan")
    """Of the last step."""

    @property
    def seconds(self) -> float:
        """A step, the median of the blocks."""
        return statistics.median(self.blocks)


def allocated(device: torch.device) -> int:
    """Bytes in tensors on the device; 0 on the CPU."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def timed(device: torch.device, action: Callable[[], object]) -> float:
    """Seconds of `action` on the device, between two events on its stream."""
    if device.type != "cuda":
        begun = time.perf_counter()
        action()
        return time.perf_counter() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def free() -> None:
    """Gives back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held(trained: Trained) -> int:
    """Bytes of weights and of the optimiser's state."""
    state = (value for values in trained.optimizer.state.values() for value in values.values())
    tensors = [*trained.model.parameters(), *(each for each in state if isinstance(each, torch.Tensor))]
    return sum(each.numel() * each.element_size() for each in tensors)


def _built(work: Workload, build: Build, warm_up: int) -> tuple[Trained, Measured]:
    trained = build(work)
    begun = time.perf_counter()
    trained.take().item()
    first = time.perf_counter() - begun
    for _ in range(warm_up - 1):
        trained.take()
    trained.optimizer.zero_grad(set_to_none=True)
    return trained, Measured(first, held(trained))


def _block(work: Workload, trained: Trained, measured: Measured, steps: int) -> None:
    losses = []
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = allocated(work.device)
    took = timed(work.device, lambda: losses.extend(trained.take() for _ in range(steps)))
    measured.blocks.append(took / steps)
    if work.device.type == "cuda":
        others = before - measured.resident
        measured.peak = max(measured.peak, torch.cuda.max_memory_allocated() - others)
    measured.loss = losses[-1].item()
    trained.optimizer.zero_grad(set_to_none=True)


def measure(
    work: Workload, builds: Mapping[str, Build], *, warm_up: int, blocks: int, steps: int
) -> tuple[dict[str, Measured], dict[str, str], dict[str, Trained]]:
    """Builds all cases, then measures a block of each in turn, `blocks` times.

    All are there at once: what does not fit beside the others' weights and moments may fit alone.

    Returns figures by case, why a case has none, and the cases that stand.
    """
    figures: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    standing: dict[str, Trained] = {}
    for name, build in builds.items():
        try:
            standing[name], figures[name] = _built(work, build, warm_up)
            print(f"  {name}: first step after {figures[name].first:.1f} s", flush=True)
        # A peer that cannot be had, or fails in its own code, is a row that says so.
        except Exception as error:  # noqa: BLE001
            missing[name] = _why(error)
        if name in missing:
            print(f"  {name}: {missing[name]}", flush=True)
            free()
    for number in range(blocks):
        # Each round begins with another case, so that none always follows the same one.
        names = list(standing)
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            try:
                _block(work, standing[name], figures[name], steps)
            except torch.OutOfMemoryError as error:
                missing[name] = _why(error)
            if name in missing:
                del standing[name], figures[name]
                free()
    return figures, missing, standing


def _why(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}"
