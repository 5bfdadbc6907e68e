"""Loss spikes: a loss far above those before it, told by a robust z-score. Reported, never acted on."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

WINDOW = 100
"""Finite losses of the same phase that a loss is compared with, at most."""
FEWEST = 20
"""Losses before the first is judged: of fewer, median and spread say little."""
THRESHOLD = 6.0
"""Robust standard deviations above the median from which a loss is a spike."""
_SMALLEST_SPREAD = 1e-3
"""Share of the median: losses that hardly differ would make a spike of a rounding error."""


def robust_z(loss: float, before: Sequence[float]) -> float:
    """How many robust standard deviations `loss` lies above the median of `before`, one loss or more.

    `(loss - median) / (1.4826 * MAD)`, MAD the median absolute deviation: of normal losses its 1.4826-fold
    is the standard deviation, and up to half of them may be outliers (Iglewicz and Hoaglin, 1993).
    """
    middle = median(before)
    spread = 1.4826 * median(abs(value - middle) for value in before)
    return (loss - middle) / max(spread, _SMALLEST_SPREAD * abs(middle), 1e-12)


class SpikeDetector:
    """Compares each loss with those before it in its phase: another phase's losses are at another level.

    What it remembers is in no checkpoint: a run that goes on shows it the losses again.
    """

    def __init__(self, before: Iterable[tuple[int, str, float]] = ()) -> None:
        """`before`: number, phase and loss of the steps so far, oldest first."""
        self.count = 0
        """Spikes seen."""
        self.last: int | None = None
        """The step with the last of them."""
        self._phase = ""
        self._before: deque[float] = deque(maxlen=WINDOW)
        for step, phase, loss in before:
            self.judge(step, phase, loss)

    def judge(self, step: int, phase: str, loss: float) -> float | None:
        """The robust z-score of a spike; None for a loss that is none, or is no finite number."""
        if phase != self._phase:
            self._phase = phase
            self._before.clear()
        if not math.isfinite(loss):
            return None
        score = robust_z(loss, self._before) if len(self._before) >= FEWEST else 0.0
        self._before.append(loss)
        if score <= THRESHOLD:
            return None
        self.count += 1
        self.last = step
        return score
