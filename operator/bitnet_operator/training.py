"""While a segment trains: what its pods say goes into the status, and whether they are to end. Pure."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from bitnet_crds import BitNetRunStatus, Progress, Segment
from bitnet_crds.protocol import Told
from bitnet_crds.status import Ending
from bitnet_operator import segments, watch
from bitnet_operator.case import Case, fitted
from bitnet_operator.conditions import Said, condition
from bitnet_operator.decision import Decision, Event, Tell
from bitnet_operator.life import End, end_asked_for
from bitnet_operator.moments import parse_timestamp
from bitnet_operator.observation import Job, JobState
from bitnet_operator.policies import plateau, resize, stall
from bitnet_operator.segments import title

STOP_SECONDS = 60.0
"""So long pods that were asked to stop may take before their job is deleted, which asks them once more."""
PODS_LOOK_SECONDS = 2.0
"""Between two looks at pods that are on their way out."""


def training(case: Case, status: BitNetRunStatus, job: Job) -> Decision:
    """What is to happen while the open segment's job may have pods."""
    known = len(status.segments)
    status = _heard(case, status, job)
    current = status.segments[-1]
    events = tuple(
        Event("Normal", began.reason, f"segment {title(began)} begins at step {began.first_step}")
        for began in status.segments[known:]
    )
    if current.ending is not None:
        return replace(_ending(case, status, current.ending, job), events=events)
    if job.state is JobState.SUSPENDED:
        message = f"the queue gives {job.name} no pods: {job.message or 'it is suspended'}"
        status = case.say(status, Said("Running", "False", "Queued", message))
    else:
        status = case.say(status, *watch.about_progress(status, job, title(current)))
    status, ending = _watched(case, status, job)
    if ending is None:
        words = segments.told(case.run.spec)
        wake_after = case.settings.progress_interval
        return Decision(status=status, tell=_tell(job, words), events=events, wake_after=wake_after)
    # Written down before the pods are asked: whoever sees them end then knows why.
    ended = (*status.segments[:-1], current.model_copy(update={"ending": ending}))
    sick = end_asked_for(ending.reason) in (End.STALLED, End.PLATEAU)
    message = f"the pods are asked to end: {ending.message}"
    asked = Event("Warning" if sick else "Normal", ending.reason, message)
    status = status.model_copy(update={"segments": ended})
    return Decision(status=status, events=(*events, asked), wake_after=0.0)


def _ending(case: Case, status: BitNetRunStatus, ending: Ending, job: Job) -> Decision:
    """Asks the pods to write a checkpoint and end; removes those that cannot hear it, or take too long."""
    left = STOP_SECONDS - (case.now - parse_timestamp(ending.at)).total_seconds()
    first = job.first_pod
    # Pods end before their job's controller has seen it, and what they said goes with the job.
    ends = any(pod.exit_code is not None or (pod.told is not None and pod.told.stop) for pod in job.pods)
    hears = first is not None and job.progress is not None
    if left <= 0 or not (ends or hears):
        return Decision(status=status, delete=(job.name,), wake_after=PODS_LOOK_SECONDS)
    words = segments.told(case.run.spec).model_copy(update={"stop": True})
    wake_after = min(max(left, 1.0), case.settings.progress_interval)
    return Decision(status=status, tell=_tell(job, words), wake_after=wake_after)


def _tell(job: Job, words: Told) -> Tell | None:
    first = job.first_pod
    if first is None or first.told == words:
        return None
    return Tell(job.name, first.name, words)


def _heard(case: Case, status: BitNetRunStatus, job: Job) -> BitNetRunStatus:
    """The status after what rank 0 said, with the segments that began in place meanwhile."""
    running = condition(status.conditions, "Running")
    if job.state is JobState.ACTIVE and running is not None and running.reason == "Queued":
        # Waiting in a queue is no stall; only now can the pods come up.
        status = status.model_copy(update={"active_at": case.at})
    if job.progress is None:
        return status
    seen = _seen(case, status, job.progress)
    age = case.settings.progress_interval
    if status.progress_at is not None:
        age = (case.now - parse_timestamp(status.progress_at)).total_seconds()
    news = (
        len(seen["segments"]) > len(status.segments)
        or seen["doing"] != status.doing
        or seen["adjustments"] != status.adjustments
    )
    # Pods' events come in bursts; what they say of progress is not worth a write each. A clock that went back
    # says nothing of age.
    if 0 <= age < case.settings.progress_interval and not news:
        return status
    if all(value == getattr(status, key) for key, value in seen.items()):
        return status
    return status.model_copy(update=seen | {"progress_at": case.at})


def _seen(case: Case, status: BitNetRunStatus, progress: Progress) -> dict[str, Any]:
    """What of the status a trainer's words change."""
    case, status = fitted(case, status, progress.micro_batches)
    current = segments.begun(case.plan, status, progress.begun_step)
    # A trainer that is still loading does not know yet how far its checkpoint is.
    step = max(progress.step, current.first_step)
    advanced = _advanced(case, current, step, progress)
    doing = watch.doing(progress)
    moved = (
        doing != status.doing
        or progress.prepared_tokens != status.prepared_tokens
        or advanced[-1].last_step != status.segments[-1].last_step
    )
    seen: dict[str, Any] = {
        "training_phase": progress.phase,
        "doing": doing,
        "prepared_tokens": progress.prepared_tokens,
        "active_at": case.at if moved else status.active_at,
        "loss": None if progress.loss is None else f"{progress.loss:.4f}",
        "tokens_per_second": progress.tokens_per_second and round(progress.tokens_per_second),
        "skipped_steps": progress.skipped_steps,
        "segment": title(advanced[-1]),
        "segments": (*status.segments[:-1], *advanced),
        "adjustments": status.adjustments,
    }
    if current.purpose == "Train":
        seen |= {"step": step, "tokens": step * case.plan.tokens_per_step}
        seen["checkpoint_step"] = progress.checkpoint.step if progress.checkpoint else status.checkpoint_step
    if progress.checkpoint is not None and progress.checkpoint.step > segments.job_began(status):
        seen["attempts"] = 0
    return seen


def _advanced(case: Case, current: Segment, step: int, progress: Progress) -> tuple[Segment, ...]:
    if current.purpose == "Train":
        return resize.advance(case.plan, current, step, case.at)
    kept = progress.checkpoint.step if progress.checkpoint else current.checkpoint_step
    reached = min(max(step, current.last_step or 0), current.end_step)
    return (current.model_copy(update={"last_step": reached, "checkpoint_step": kept}),)


def _watched(case: Case, status: BitNetRunStatus, job: Job) -> tuple[BitNetRunStatus, Ending | None]:
    """The status with what was seen of stall and plateau, and why the pods are to end, if they are."""
    current, spec = status.segments[-1], case.run.spec
    if case.observation.stop_requested:
        return status, Ending(reason="Suspended", message="the run is to stop here", at=case.at)
    if segments.spec_changed(case.run, case.plan, status):
        return status, Ending(reason="SpecChanged", message="spec.workers was changed", at=case.at)
    if job.state is JobState.SUSPENDED:
        return status, None
    limit = spec.health.stall_seconds
    stalled = stall.judge(job, status.doing, _still_since(case, status), case.now, limit)
    if (about := watch.about_stall(status.conditions, stalled)) is not None:
        status = case.say(status, about)
    if stalled is not None:
        asks = Ending(reason=stalled.reason, message=stalled.message, at=case.at)
        return status, asks if stalled.ends else None
    if job.progress is None or current.purpose == "TuneTeacher":
        return status, None
    return _judged(case, status, job.progress)


def _still_since(case: Case, status: BitNetRunStatus) -> datetime:
    """Since when nothing was seen to move. What nobody could see, the operator being away, does not count."""
    last = parse_timestamp(status.active_at or status.segments[-1].started_at)
    watched = case.observation.watched_since
    return last if watched is None else max(last, watched)


def _judged(case: Case, status: BitNetRunStatus, progress: Progress) -> tuple[BitNetRunStatus, Ending | None]:
    health = case.run.spec.health.plateau
    if health is None or status.adjustments.end_step is not None:
        return status, None  # training is over, and the pods evaluate and export
    judgement = plateau.judge(case.plan, status.adjustments, health, progress.loss_curve)
    if (about := watch.about_plateau(status.conditions, judgement, health)) is not None:
        status = case.say(status, about)
    last_phase = progress.phase == case.plan.phases[-1].name
    acts = health.action == "Stop" or (health.action == "NextPhase" and not last_phase)
    said = condition(status.conditions, "LossPlateau")
    if said is None or said.status != "True" or not acts:
        return status, None
    ending = Ending(reason="LossPlateau", message=said.message, at=case.at, phase=progress.phase)
    return status, ending
