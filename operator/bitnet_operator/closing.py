"""At a segment's end: what its pods' last words change, and what follows by the table `life`. Pure."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from bitnet_crds import BitNetRunStatus, ExitCode, SegmentReason
from bitnet_crds.protocol import PHASE_BOUNDARY
from bitnet_crds.status import Ending, RunPhase
from bitnet_operator import segments
from bitnet_operator.case import Case, fitted
from bitnet_operator.conditions import Said
from bitnet_operator.decision import Decision, Event
from bitnet_operator.failing import fail
from bitnet_operator.life import LIFE, End, end_asked_for
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Job
from bitnet_operator.policies import nonfinite, out_of_memory, resize, retry, stall
from bitnet_operator.policies.adjust import Adjusted, Exhausted
from bitnet_operator.policies.failure import Failure
from bitnet_operator.segments import title


def reported(case: Case, status: BitNetRunStatus, job: Job) -> tuple[Case, BitNetRunStatus]:
    """The status with what the last words of the open segment's pods add to it, and the case under the ledger
    that it then has."""
    reports = [pod.report for pod in job.by_rank if pod.report is not None]
    if not reports:
        return case, status
    furthest = max(reports, key=lambda report: report.step)
    kept = max((report.checkpoint.step for report in reports if report.checkpoint), default=None)
    for report in reports:
        case, status = fitted(case, status, report.micro_batches)
    update: dict[str, Any] = {
        "evaluation": furthest.evaluation or status.evaluation,
        "artifacts": status.artifacts | furthest.artifacts,
    }
    current = status.segments[-1]
    if kept is not None and kept > segments.job_began(status):
        # However the segment ended: a checkpoint that was committed meanwhile begins the count anew.
        update["attempts"] = 0
    if current.purpose == "Train":
        update["step"] = max(furthest.step, status.step)
        update["checkpoint_step"] = status.checkpoint_step if kept is None else kept
    else:
        reached = min(max(furthest.step, current.last_step or 0), current.end_step)
        kept = current.checkpoint_step if kept is None else kept
        last = {"last_step": reached, "checkpoint_step": kept}
        update["segments"] = (*status.segments[:-1], current.model_copy(update=last))
    return case, status.model_copy(update=update)


def succeeded(case: Case, status: BitNetRunStatus, job: Job) -> Decision:
    """After pods that ended well: the run's end, or a stretch's."""
    current, plan = status.segments[-1], case.plan
    if current.purpose == "TuneTeacher":
        current = current.model_copy(update={"last_step": current.end_step})
        status = status.model_copy(update={"segments": (*status.segments[:-1], current)})
        return _closed(case, status, End.TUNED, None, f"the teacher is tuned, in {current.end_step} steps")
    report = next((pod.report for pod in job.by_rank if pod.report is not None), None)
    pods_end = plan.pods_end(current.first_step)
    if pods_end < plan.end_step if report is None else report.reason == PHASE_BOUNDARY:
        kept = pods_end if report is None else report.checkpoint.step if report.checkpoint else 0
        status = status.model_copy(update={"checkpoint_step": kept or None, "step": kept})
        message = f"the run goes on at step {kept}, in other pods"
        return _closed(case, status, End.BOUNDARY, None, message, then=resize.reason_at(plan, kept))
    status = status.model_copy(update={"step": plan.end_step, "tokens": plan.tokens})
    return _closed(case, status, End.DONE, None, f"{plan.end_step} steps, {plan.tokens} tokens")


def failed(case: Case, status: BitNetRunStatus, failure: Failure) -> Decision:
    """After pods that ended short of what they were to do, or are gone."""
    current = status.segments[-1]
    tuning = current.purpose == "TuneTeacher"
    if current.ending is not None:
        return _ended_as_asked(case, status, current.ending, failure)
    if case.observation.stop_requested and (failure.preempted or failure.exit_code == ExitCode.KILLED):
        return _closed(case, status, End.SUSPENDED, failure, "stopped by request")
    if failure.preempted:
        return _closed(case, status, End.PREEMPTED, failure, failure.message)
    known = status.adjustments
    if failure.exit_code == ExitCode.NON_FINITE and not tuning:
        health = case.run.spec.health.non_finite
        verdict = nonfinite.after_non_finite(case.plan, known, health, failure.report, failure.message)
        return _adjusted(case, status, End.NON_FINITE, failure, verdict)
    if failure.exit_code == ExitCode.OUT_OF_MEMORY:
        # Pods that are still loading count no steps yet.
        step = (failure.report.step if failure.report else status.step) or current.first_step
        verdict = out_of_memory.after_out_of_memory(
            case.plan, known, step, tuning=tuning, message=failure.message
        )
        return _adjusted(case, status, End.OUT_OF_MEMORY, failure, verdict)
    return _retried(case, status, End.FAILED if failure.retryable else End.HOPELESS, failure)


def _adjusted(
    case: Case, status: BitNetRunStatus, end: End, failure: Failure, verdict: Adjusted | Exhausted
) -> Decision:
    if isinstance(verdict, Exhausted):
        return _closed(case, status, end, failure, verdict.message, over=True)
    decision = _closed(case, status, end, failure, verdict.message)
    update: dict[str, Any] = {"adjustments": verdict.adjustments}
    if (back := verdict.checkpoint_step) is not None:
        update |= {"checkpoint_step": back, "step": back}
    return replace(decision, status=decision.status.model_copy(update=update))


def _ended_as_asked(case: Case, status: BitNetRunStatus, ending: Ending, failure: Failure) -> Decision:
    """Whatever the pods ran into on their way out, they were to end."""
    end, then = end_asked_for(ending.reason), None
    if end is End.STALLED:
        # What came up nowhere may have been mended while it was taken away.
        helps = ending.reason not in stall.HOPELESS or segments.spec_changed(case.run, case.plan, status)
        stalled = replace(failure, reason=ending.reason, message=ending.message, retryable=helps)
        return _retried(case, status, end, stalled)
    if end is End.PLATEAU:
        status, then = _cut_short(case, status, ending, failure)
    return _closed(case, status, end, failure, ending.message, then=then)


def _cut_short(
    case: Case, status: BitNetRunStatus, ending: Ending, failure: Failure
) -> tuple[BitNetRunStatus, SegmentReason | None]:
    """The status with the ledger in which the phase, or training, ends at the checkpoint that was written.

    Where the phase was over before the pods had ended, or they left no word of a checkpoint, nothing is cut
    short: the loss is judged again.
    """
    kept, known = status.checkpoint_step or 0, status.adjustments
    phase, health = case.plan.phase_at(kept), case.run.spec.health.plateau
    in_phase = phase.name == ending.phase and kept > phase.first_step
    if health is None or failure.report is None or not in_phase:
        return status, SegmentReason.RETRY
    update: dict[str, Any] = (
        {"end_step": kept}
        if health.action == "Stop"
        else {"phase_ends": known.phase_ends | {phase.name: kept}}
    )
    return status.model_copy(update={"adjustments": known.model_copy(update=update)}), None


def _retried(case: Case, status: BitNetRunStatus, end: End, failure: Failure) -> Decision:
    limit, delay = case.run.spec.retries, case.settings.first_retry_delay
    verdict = retry.after_failure(failure, status.attempts, limit, delay)
    status = status.model_copy(update={"attempts": verdict.attempts})
    if isinstance(verdict, retry.GiveUp):
        return _closed(case, status, end, failure, verdict.message, over=True)
    return _closed(case, status, end, failure, failure.message, after=verdict.after_seconds)


def _closed(
    case: Case,
    status: BitNetRunStatus,
    end: End,
    failure: Failure | None,
    message: str,
    *,
    then: SegmentReason | None = None,
    over: bool = False,
    after: float = 0.0,
) -> Decision:
    """Closes the open segment, and says what follows: the next one in `after` seconds, for `then` or the
    table's reason; none where the run is `over`."""
    course = LIFE[end]
    status = _with_segment_closed(case, status, end, failure, message)
    last = status.segments[-1]
    if over:
        reason = last.exit_reason or end.value
        observation = replace(case.observation, status=status)
        return fail(observation, reason, message, case.now, accepted=True)
    if end is End.DONE:
        said = Said("Running", "False", "Succeeded", message), Said("Succeeded", "True", "Completed", message)
        status = case.say(status.model_copy(update={"phase": RunPhase.SUCCEEDED}), *said)
        return Decision(status=status, events=(Event("Normal", "Succeeded", message),))
    last = last.model_copy(update={"then": then or course.begins})
    closed = (*status.segments[:-1], last)
    if end is End.PREEMPTED:
        after = retry.after_preemption(closed, case.settings.first_retry_delay)
    update = {
        "segments": closed,
        "phase": course.waits or RunPhase.RUNNING,
        "retry_at": timestamp(case.now + timedelta(seconds=after)) if after else None,
    }
    message = f"{message}; goes on with {last.then}"
    reason = last.exit_reason or end.value
    status = case.say(status.model_copy(update=update), Said("Running", "False", reason, message))
    event = Event("Warning" if course.over else "Normal", reason, message)
    return Decision(status=status, events=(event,), wake_after=after)


def _with_segment_closed(
    case: Case, status: BitNetRunStatus, end: End, failure: Failure | None, message: str
) -> BitNetRunStatus:
    """The status with its open segment closed. Boundaries passed since the last look are written down first:
    the report tells how far the pods really got."""
    current = status.segments[-1]
    *passed, last = (
        resize.advance(case.plan, current, status.step, case.at) if current.purpose == "Train" else (current,)
    )
    ended = {
        "outcome": LIFE[end].outcome,
        "exit_code": 0 if failure is None else failure.exit_code,
        "exit_reason": None if failure is None else failure.reason,
        "message": message if failure is None else failure.message,
        "ended_at": case.at,
    }
    if current.purpose == "Train":
        ended["checkpoint_step"] = status.checkpoint_step
    last = last.model_copy(update=ended)
    return status.model_copy(
        update={
            "segments": (*status.segments[:-1], *passed, last),
            "segment": title(last),
            "training_phase": None,
            "tokens_per_second": None,
        }
    )
