"""Resize: where the shape changes because the teacher comes in or leaves. In place, the job goes on."""

from bitnet_crds import Plan, Segment, SegmentReason
from bitnet_crds.status import SegmentOutcome


def stretch_end(plan: Plan, step: int) -> int:
    """The step at which the shape of step `step` ends: the next phase of another one, or the run's end."""
    shape = plan.phase_at(step).shape
    for phase in plan.phases:
        if phase.end_step > step and phase.shape != shape:
            return phase.first_step
    return plan.total_steps


def advance(plan: Plan, current: Segment, step: int, now: str) -> tuple[Segment, ...]:
    """The current segment after `step` steps, followed by those that began in its job meanwhile.

    The trainer resizes at the boundary by the ledger, without being told; this writes down that it did.
    """
    segments = [
        current.model_copy(update={"last_step": min(max(step, current.last_step or 0), current.end_step)})
    ]
    while step >= segments[-1].end_step and segments[-1].end_step < plan.total_steps:
        ended = segments.pop()
        end_step = stretch_end(plan, ended.end_step)
        segments += [
            ended.model_copy(
                update={"outcome": SegmentOutcome.COMPLETED, "ended_at": now, "last_step": ended.end_step}
            ),
            Segment(
                index=ended.index + 1,
                reason=SegmentReason.TEACHER_PHASE,
                job=ended.job,
                first_step=ended.end_step,
                end_step=end_step,
                shape=plan.phase_at(ended.end_step).shape,
                started_at=now,
                last_step=min(step, end_step),
            ),
        ]
    return tuple(segments)
