"""The loss of a phase over its last window, in few points: what a plateau is told by."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from bitnet_crds.health import STRETCHES
from bitnet_crds.plan import Plan
from bitnet_crds.protocol import LossPoint


def window_of(plan: Plan, tokens: int) -> int:
    """Steps in which so many tokens are trained on, at least."""
    return -(-tokens // plan.tokens_per_step)


class LossCurve:
    """The median loss of each of the last STRETCHES stretches, all of one length and of one phase.

    A stretch of n steps begins at every n-th step of its phase. One that has no finite loss has no point.
    What this remembers is in no checkpoint: a run that goes on shows it the losses again.
    """

    def __init__(self, window: int, first_steps: Mapping[str, int]) -> None:
        """
        Args:
            window: steps over which a plateau is watched for; a stretch has a 32nd of them, rounded up.
            first_steps: by phase, the steps completed before it. One that is no part of the run any more, but
                was when it was trained, counts from where it was shown.
        """
        self._length, self._first_steps = -(-window // STRETCHES), first_steps
        self._phase, self._step, self._begun = "", -1, 0
        self._losses: list[float] = []
        self._points: deque[LossPoint | None] = deque(maxlen=STRETCHES)

    def show(self, losses: Iterable[tuple[int, str, float | None]]) -> "LossCurve":
        """Adds steps that were trained before, oldest first, as `add` takes them."""
        for step, phase, loss in losses:
            self.add(step, phase, loss)
        return self

    def add(self, step: int, phase: str, loss: float | None) -> None:
        """Adds the step that is number `step`, from 1, with its loss, if it was kept and has one.

        Where steps are missing before it, or were of another phase, the curve begins anew.
        """
        if (phase, step) != (self._phase, self._step + 1):
            self._begun = step - 1
            self._losses.clear()
            self._points.clear()
        self._phase, self._step = phase, step
        if loss is not None and math.isfinite(loss):
            self._losses.append(loss)
        if (step - self._first_steps.get(phase, self._begun)) % self._length:
            return
        if self._begun <= step - self._length:
            self._points.append(LossPoint(step=step, loss=median(self._losses)) if self._losses else None)
        self._losses.clear()

    @property
    def points(self) -> tuple[LossPoint, ...]:
        """The whole stretches, oldest first."""
        return tuple(point for point in self._points if point is not None)
