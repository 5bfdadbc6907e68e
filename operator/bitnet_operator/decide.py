"""decide: from a run, its ledger and what was observed, what is to happen next. Pure: no I/O, no clock."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from bitnet_crds import BitNetRun, BitNetRunStatus, Plan, Segment
from bitnet_crds.status import RunPhase
from bitnet_operator import segments
from bitnet_operator.case import Case, Settings
from bitnet_operator.closing import failed, reported, succeeded
from bitnet_operator.conditions import Said, generation
from bitnet_operator.decision import Decision, Event
from bitnet_operator.failing import mended
from bitnet_operator.moments import parse_timestamp
from bitnet_operator.observation import JobState, Observation
from bitnet_operator.policies.failure import Failure, first_cause
from bitnet_operator.policies.retry import LONGEST_DELAY_SECONDS
from bitnet_operator.segments import title
from bitnet_operator.training import PODS_LOOK_SECONDS, training


def decide(
    run: BitNetRun, plan: Plan, observation: Observation, now: datetime, settings: Settings
) -> Decision:
    """What is to happen next with a run whose spec is in order. `plan` is its ledger after the adjustments
    in its status."""
    case = Case(run, plan, observation, now, settings)
    decision = _decide(case, _accepted(case, mended(observation)))
    # Whatever else is to happen, no job trains beside the one that the status tells of.
    gone = {*decision.delete, *segments.strays(observation, decision.status)}
    held = run.spec.checkpoint.on_delete == "Remove"
    return replace(decision, delete=tuple(sorted(gone)), held=held)


def _accepted(case: Case, status: BitNetRunStatus) -> BitNetRunStatus:
    plan = case.plan
    update = {
        "observed_generation": generation(case.observation.document),
        "total_steps": plan.end_step,
    }
    message = f"{plan.end_step} steps of {plan.tokens_per_step} tokens"
    return case.say(status.model_copy(update=update), Said("Accepted", "True", "Planned", message))


def _decide(case: Case, status: BitNetRunStatus) -> Decision:
    if status.phase.ended:
        return Decision(status=status)
    current = segments.open_segment(status)
    if current is None:
        return _between(case, status)
    job = case.observation.job(current.job)
    if job is None:
        return failed(case, status, Failure("JobDeleted", f"job {current.job} is gone"))
    match job.state:
        case JobState.ENDING:
            return Decision(status=status, wake_after=PODS_LOOK_SECONDS)
        case JobState.ACTIVE | JobState.SUSPENDED:
            return training(case, status, job)
        case JobState.SUCCEEDED:
            return succeeded(*reported(case, status, job), job)
        case JobState.FAILED:
            return failed(*reported(case, status, job), first_cause(job))


def _between(case: Case, status: BitNetRunStatus) -> Decision:
    """After a segment that ended short of the run's end, or before the first: the next, once it may begin."""
    if case.observation.stop_requested:
        message = f"stopped by request; goes on from step {status.checkpoint_step or 0}"
        status = status.model_copy(update={"phase": RunPhase.SUSPENDED, "retry_at": None})
        return Decision(status=case.say(status, Said("Running", "False", "Suspended", message)))
    if status.retry_at is not None:
        wait = (parse_timestamp(status.retry_at) - case.now).total_seconds()
        # Nobody is told to wait for longer: a clock went back since.
        if 0 < wait <= LONGEST_DELAY_SECONDS:
            return Decision(status=status, wake_after=wait)
    segment = segments.next_segment(case.run, case.plan, status, case.now)
    there = case.observation.job(segment.job)
    # One that an operator made that died before it wrote that down is as good, if nothing changed since.
    good = there is not None and there.state is not JobState.ENDING and there.made_from == segment.pods
    if pods := segments.still_running(case.observation, segment.job if good else None):
        message = f"segment {title(segment)} waits until {', '.join(pods)} have ended"
        return Decision(
            status=case.say(status, Said("Running", "False", "PodsStillRun", message)),
            delete=() if good or there is None else (segment.job,),
            wake_after=PODS_LOOK_SECONDS,
        )
    if there is not None and not good:
        return Decision(status=status, delete=(segment.job,), wake_after=PODS_LOOK_SECONDS)
    return _begin(case, status, segment)


def _begin(case: Case, status: BitNetRunStatus, segment: Segment) -> Decision:
    update: dict[str, Any] = {
        "phase": RunPhase.RUNNING,
        "doing": None,
        "prepared_tokens": 0,
        "active_at": case.at,
        "retry_at": None,
        "segment": title(segment),
        "segments": (*status.segments, segment),
    }
    if segment.purpose == "Train":
        update["step"] = segment.first_step
    message = f"segment {title(segment)} waits for its pods, to go on at step {segment.first_step}"
    said = Said("Running", "False", "WaitingForPods", message)
    return Decision(
        ensure=segment.job,
        delete=segments.outlived(case.observation, segment.job),
        status=case.say(status.model_copy(update=update), said),
        events=(Event("Normal", segment.reason, f"job {segment.job} begins at step {segment.first_step}"),),
        wake_after=case.settings.progress_interval,
    )
