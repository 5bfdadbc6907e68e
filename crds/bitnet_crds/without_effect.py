"""What a person wrote that a run's other settings leave without effect. Pure."""

from collections.abc import Iterator

from bitnet_crds.errors import Problem
from bitnet_crds.health import STRETCHES, NonFinite
from bitnet_crds.plan import Plan, PlannedPhase
from bitnet_crds.spec import BitNetRunSpec


def without_effect(spec: BitNetRunSpec, plan: Plan) -> Iterator[Problem]:
    """Each key that does nothing in this run, in the order of the spec. `plan` is the ledger of `spec`."""
    yield from _schedule(spec)
    yield from _factor(spec, plan)
    nonfinite = spec.health.non_finite
    # The default is what an API server writes where a person wrote none.
    if nonfinite.rollbacks == 0 and nonfinite.learning_rate_factor != NonFinite().learning_rate_factor:
        yield Problem(
            "spec.health.nonFinite.learningRateFactor",
            "with `rollbacks: 0` the run never goes back, so no rate is multiplied",
            "Remove it, or write some rollbacks",
        )
    yield from _plateau(spec, plan)


def _schedule(spec: BitNetRunSpec) -> Iterator[Problem]:
    schedule = spec.schedule
    if schedule.name == "WarmupStableDecay" and schedule.decay_fraction == 0:
        # A finalShare of 0 is what an API server writes where a person wrote none.
        written = {"decayCurve": schedule.decay_curve is not None, "finalShare": bool(schedule.final_share)}
        for key in (key for key, is_written in written.items() if is_written):
            yield Problem(
                f"spec.schedule.{key}",
                "with `decayFraction: 0` the rate never falls, so it does nothing",
                "Remove it, or write a decayFraction above 0",
            )


def _factor(spec: BitNetRunSpec, plan: Plan) -> Iterator[Problem]:
    if spec.teacher is None or spec.teacher.batch_size_factor is None:
        return
    phases = zip(spec.phases, plan.phases, strict=True)
    with_teacher = [phase for phase, planned in phases if planned.teacher]
    own = [phase.name for phase in with_teacher if phase.workers and phase.workers.micro_batch_size]
    if own and len(own) == len(with_teacher):
        yield Problem(
            "spec.teacher.batchSizeFactor",
            f"each phase with the teacher in memory writes its own microBatchSize ({', '.join(own)}), so "
            "there is nothing to multiply",
            "Remove it, or the microBatchSize of one of them",
        )


def _plateau(spec: BitNetRunSpec, plan: Plan) -> Iterator[Problem]:
    """Whether each window of the plateau is longer than any stretch of steps in which it is judged."""
    plateau = spec.health.plateau
    if plateau is None:
        return
    length = -(-plateau.window_tokens // (plan.tokens_per_step * STRETCHES))
    for phase in plan.phases:
        first, end = _judged(plan, phase)
        # Windows begin at every length-th step of the phase.
        waited = -(-(first - phase.first_step) // length) * length
        if phase.first_step + waited + STRETCHES * length <= end:
            return
    steps = max(end - first for first, end in (_judged(plan, phase) for phase in plan.phases))
    where = "after the warmups and a phase's transition, and before the decay"
    if steps < STRETCHES:
        yield Problem(
            "spec.health.plateau",
            f"the loss is judged over {STRETCHES} steps or more, {where}, where there are {max(0, steps)} in "
            "a row at most: no plateau will ever be found",
            "Shorten the warmups or the decay, give the run more tokens, or remove it",
        )
        return
    # However the windows lie, one of so many steps fits.
    tokens = (steps + 1) // (STRETCHES + 1) * STRETCHES * plan.tokens_per_step
    yield Problem(
        "spec.health.plateau.windowTokens",
        f"a window is {STRETCHES * length} steps long, and is judged {where}, where there are {steps} in a "
        "row at most: no plateau will ever be found",
        f"Write at most {tokens}, give the run more tokens, or remove spec.health.plateau",
    )


def _judged(plan: Plan, phase: PlannedPhase) -> tuple[int, int]:
    """The first step of the phase whose loss is judged, and the one before which that ends."""
    return plan.settled(phase), min(phase.end_step, plan.learning_rate.decay_start)
