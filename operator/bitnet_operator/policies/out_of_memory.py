"""Out of memory: the micro batch of the phase that did not fit is halved, and accumulation doubled."""

from bitnet_crds import Plan, Shape
from bitnet_crds.adjustments import Adjustments
from bitnet_crds.tuning import TUNING
from bitnet_operator.policies.adjust import Adjusted, Exhausted

LARGEST_HALVINGS = 3
"""How often a phase's micro batch is halved: an eighth, after which memory is short by something else."""


def after_out_of_memory(
    plan: Plan, adjustments: Adjustments, step: int, *, tuning: bool, message: str
) -> Adjusted | Exhausted:
    """What follows when memory ran out in step `step` (from 0), or in one of the teacher's tuning.

    The global batch holds. `plan` is the ledger that the step was trained by.
    """
    name, shape = _place(plan, step, tuning=tuning)
    times, halved = adjustments.halvings.get(name, 0), shape.halved()
    if halved is None:
        return Exhausted(f"{message} (the micro batch of {name!r} is 1 already)")
    if times >= LARGEST_HALVINGS:
        return Exhausted(
            f"{message} (the micro batch of {name!r} was halved {times} times, to {shape.micro_batch_size})"
        )
    return Adjusted(
        adjustments.model_copy(update={"halvings": adjustments.halvings | {name: times + 1}}),
        f"{message} The micro batch of {name!r} is halved: {halved.micro_batch_size} sequences, "
        f"{halved.accumulation} times a step",
    )


def _place(plan: Plan, step: int, *, tuning: bool) -> tuple[str, Shape]:
    if tuning and plan.tuning is not None:
        return TUNING, plan.tuning.shape
    phase = plan.phase_at(step)
    return phase.name, phase.shape
