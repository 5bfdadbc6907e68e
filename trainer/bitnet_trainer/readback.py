"""Numbers of a step on their way from the device to the host, without the host waiting for the step."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Label = TypeVar("Label")

_MOST_PENDING = 8
"""Steps that the host may be ahead of the device before it waits."""


@dataclass(frozen=True)
class _Pending(Generic[Label]):
    label: Label
    values: torch.Tensor
    copied: torch.cuda.Event | None


class Readback(Generic[Label]):
    """A queue of small tensors, each with a label; on CUDA they are copied while training goes on."""

    def __init__(self) -> None:
        self._pending: deque[_Pending[Label]] = deque()

    def push(self, label: Label, values: torch.Tensor) -> None:
        """Starts bringing `values` (N,) to the host."""
        if values.device.type != "cuda":
            self._pending.append(_Pending(label, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._pending.append(_Pending(label, host, copied))

    def arrived(self, wait: bool = False) -> list[tuple[Label, list[float]]]:
        """Those that have arrived, oldest first; with `wait` all that were pushed."""
        done = []
        while self._pending:
            first = self._pending[0]
            if first.copied is not None and not first.copied.query():  # type: ignore[no-untyped-call]
                if not wait and len(self._pending) <= _MOST_PENDING:
                    break
                first.copied.synchronize()
            self._pending.popleft()
            done.append((first.label, first.values.tolist()))
        return done


class Speedometer:
    """Tokens a second over the last ten steps."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._ends: deque[float] = deque(maxlen=11)
        self.restart()

    def restart(self) -> None:
        """Counts from now, leaving out what came before, such as a checkpoint."""
        self._ends.clear()
        self._ends.append(time.monotonic())

    def step(self) -> float | None:
        """Counts a step that ended now, and gives the speed."""
        self._ends.append(time.monotonic())
        elapsed = self._ends[-1] - self._ends[0]
        return (len(self._ends) - 1) * self._tokens_per_step / elapsed if elapsed > 0 else None
