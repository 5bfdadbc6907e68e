"""Resize: where the shape changes because the teacher comes in or leaves, in the same pods or in others."""

from bitnet_crds import Plan, Segment, SegmentReason
from bitnet_crds.status import SegmentOutcome


def stretch_end(plan: Plan, step: int) -> int:
    """The step at which the stretch of step `step` ends: the next phase of another shape or in other pods, or
    the step before which training ends."""
    shape = plan.phase_at(step).shape
    for phase in plan.phases:
        if phase.first_step > step and (phase.shape != shape or phase.new_pods):
            return min(phase.first_step, plan.end_step)
    return plan.end_step


def reason_at(plan: Plan, step: int) -> SegmentReason:
    """Why a segment begins at step `step`, where a phase does: the teacher came in or left, or that phase has
    other pods. Retry where none begins there: the pods ended short of it."""
    for before, phase in zip(plan.phases, plan.phases[1:], strict=False):
        if phase.first_step == step:
            return SegmentReason.TEACHER_PHASE if phase.teacher != before.teacher else SegmentReason.PHASE
    return SegmentReason.RETRY


def advance(plan: Plan, current: Segment, step: int, now: str) -> tuple[Segment, ...]:
    """The current segment after `step` steps, followed by those that began in its job meanwhile.

    The trainer resizes at the boundary by the ledger, without being told; this writes down that it did. A
    phase in other pods is none of these: it begins in a job of its own.
    """
    pods_end = plan.pods_end(current.first_step)
    reached = min(max(step, current.last_step or 0), current.end_step)
    segments = [current.model_copy(update={"last_step": reached})]
    while step >= segments[-1].end_step and segments[-1].end_step < pods_end:
        ended = segments.pop()
        end_step = stretch_end(plan, ended.end_step)
        segments += [
            ended.model_copy(
                update={"outcome": SegmentOutcome.COMPLETED, "ended_at": now, "last_step": ended.end_step}
            ),
            Segment(
                index=ended.index + 1,
                reason=reason_at(plan, ended.end_step),
                job=ended.job,
                first_step=ended.end_step,
                end_step=end_step,
                shape=plan.phase_at(ended.end_step).shape,
                last_step=min(step, end_step),
                pods=ended.pods,
                started_at=now,
            ),
        ]
    return tuple(segments)
