"""When each step of a run was done, by its metrics.jsonl, and what an interruption cost."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_EVERY_SECONDS = 0.1


class StepWatch:
    """Watches a run's metrics.jsonl while the block lasts: `with StepWatch(file) as watch: …`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen: list[tuple[float, int]] = []
        """When a step was first seen as the last one, by the monotonic clock, and which."""
        self.since = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"steps of {file.parent.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        lines = steps_of(self.file)
        if lines and (not self.seen or self.seen[-1][1] != lines[-1]["step"]):
            self.seen.append((time.monotonic(), lines[-1]["step"]))

    @property
    def start(self) -> float:
        """Seconds from the watch's making to the first step that was seen."""
        return self.seen[0][0] - self.since

    @property
    def downtime(self) -> float:
        """Seconds without a step, the longest time, less what a step usually takes."""
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(self.seen)]
        return max(gaps) - statistics.median(gaps)

    @property
    def repeated(self) -> int:
        """Steps that were done once more, over all interruptions."""
        steps = [step for _, step in self.seen]
        return sum(max(0, before - after + 1) for before, after in itertools.pairwise(steps))


def steps_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; the last may be half written."""
    lines = file.read_text().splitlines() if file.exists() else []
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return steps
