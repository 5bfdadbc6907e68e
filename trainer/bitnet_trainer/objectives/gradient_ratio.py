"""Weights found by measuring: an objective's gradient is held at a share of crossEntropy's."""

import math
from collections.abc import Callable, Mapping

BASE = "crossEntropy"
EVERY_STEPS = 50
"""Steps between measurements, once a phase has settled."""
_LARGEST = 1e6
"""A ratio beyond this says that an objective has next to no gradient, not how to weigh it: a student that is
its own teacher has none while nothing is quantised yet."""


def is_due(steps_into_phase: int) -> bool:
    """Whether to measure before a step: at 0, 1, 2, 4, ... 32 and then every EVERY_STEPS.

    Gradients change fastest as a phase begins, while a new objective takes hold.
    """
    return steps_into_phase % EVERY_STEPS == 0 or (
        steps_into_phase < EVERY_STEPS and steps_into_phase & (steps_into_phase - 1) == 0
    )


def measured_ratios(
    names: frozenset[str], gradient_norm: Callable[[str], float], known: Mapping[str, float]
) -> dict[str, float]:
    """By objective, the norm of crossEntropy's gradient as a multiple of its own, both unweighted.

    Args:
        names: the objectives to measure.
        gradient_norm: the norm of one objective's gradient over a whole step, the same on every rank.
        known: ratios measured before; one stays where a norm is 0 or not finite now.
    """
    if not names:
        return dict(known)
    base = gradient_norm(BASE)
    ratios = dict(known)
    for name in sorted(names):
        norm = gradient_norm(name)
        if math.isfinite(base) and math.isfinite(norm) and base > 0 and norm > 0:
            ratios[name] = min(base / norm, _LARGEST)
    return ratios


def balanced(
    weights: Mapping[str, float], names: frozenset[str], ratios: Mapping[str, float]
) -> dict[str, float]:
    """The factors of the total loss: for `names`, weight * crossEntropy's weight * ratio; else the weight.

    So the norm of a balanced objective's weighted gradient is `weight` times that of crossEntropy's. One that
    has never been measured is left out.
    """
    return {
        name: weight * weights.get(BASE, 0.0) * ratios.get(name, 0.0) if name in names else weight
        for name, weight in weights.items()
    }
