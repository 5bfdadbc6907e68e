"""Plateau: whether the loss has stopped falling, where training alone may be expected to make it fall."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from bitnet_crds import Plan
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.health import STRETCHES, Plateau
from bitnet_crds.protocol import LossPoint


@dataclass(frozen=True)
class Judgement:
    """What the loss did over a window."""

    flat: bool
    improvement: float
    """Share of the loss by which it fell."""
    since_step: int
    """Where the window begins."""


def judge(
    plan: Plan, adjustments: Adjustments, health: Plateau, curve: Sequence[LossPoint]
) -> Judgement | None:
    """Whether the loss over the last window is a plateau; None where that cannot be told.

    The window has to be whole, and to lie in one phase: after its transition, the learning rate's and
    lambda's warmup and the last roll-back, and before the learning rate's decay.
    """
    if len(curve) < STRETCHES:
        return None
    stretch = curve[1].step - curve[0].step
    since, last = curve[0].step - stretch, curve[-1].step
    if since < _settled(plan, adjustments, last - 1) or last > plan.learning_rate.decay_start:
        return None
    level = median(point.loss for point in curve)
    if level <= 0:
        return None
    improvement = -theil_sen(curve) * stretch * len(curve) / level
    return Judgement(improvement < float(health.min_improvement), improvement, since)


def _settled(plan: Plan, adjustments: Adjustments, step: int) -> int:
    """From which step on the loss of step `step`'s phase says something of training alone."""
    went_back_to = (rollback.checkpoint_step for rollback in adjustments.rollbacks)
    return max((plan.settled(plan.phase_at(step)), *went_back_to))


def theil_sen(curve: Sequence[LossPoint]) -> float:
    """The median of the slopes between all pairs of points, in loss a step: a third of the points may be
    anywhere. Source: Sen 1968, doi 10.1080/01621459.1968.10480934."""
    return median((b.loss - a.loss) / (b.step - a.step) for a, b in combinations(curve, 2))
