"""removal: what is to happen with a deleted run until all that it keeps is removed. Pure."""

from datetime import datetime, timedelta
from typing import Literal

from bitnet_crds import BitNetRun, BitNetRunStatus
from bitnet_crds.protocol import run_address
from bitnet_operator import segments
from bitnet_operator.conditions import Said, condition, generation, say
from bitnet_operator.decision import Decision, Event
from bitnet_operator.moments import parse_timestamp, timestamp
from bitnet_operator.observation import Job, JobState, Observation
from bitnet_operator.policies.failure import first_cause
from bitnet_operator.policies.retry import FIRST_DELAY_SECONDS

FINALIZER = "bitnet.training/checkpoints"
"""Holds a deleted run with `checkpoint.onDelete: Remove` until what it keeps is removed."""
CONDITION = "CheckpointsRemoved"
"""Says of a deleted run how far that is."""
LONGEST_WAIT_SECONDS = 3600.0
"""Between two tries. Each is waited for as long as all before it took, so the waits double."""
PODS_LOOK_SECONDS = 2.0
"""Between two looks at pods and jobs that are on their way out."""
LOOK_SECONDS = 15.0
"""Between two looks at the removal itself, of which events tell."""

_FAILED, _WAITS = "RemovalFailed", "PodWaits"
_GIVE_UP = f"set spec.checkpoint.onDelete to Keep, or take the finalizer {FINALIZER} off, to let the run go"


def removal(run: BitNetRun, observation: Observation, now: datetime) -> Decision:
    """What is to happen next with a deleted run whose spec is in order: its jobs go, then its pods, then what
    it keeps, and then the run itself."""
    status = observation.status
    if run.spec.checkpoint.on_delete == "Keep":
        return Decision(status=status, removal=False, held=False)
    if not _began(observation):
        # Whatever lies there is not this run's, and a template that no pod could be made from holds nothing.
        return Decision(status=status, held=False)
    if observation.removal is not None:
        return _under_way(run, observation, observation.removal, now)
    if pods := segments.still_running(observation, None):
        message = f"waits until {', '.join(pods)} have ended"
        status = _say(observation, now, "False", "PodsStillRun", message)
        delete = tuple(sorted(job.name for job in observation.jobs if job.state is not JobState.ENDING))
        return Decision(status=status, delete=delete, wake_after=PODS_LOOK_SECONDS)
    if wait := _wait(observation, now):
        return Decision(status=status, wake_after=wait)
    message = f"{segments.removal_job(run.metadata.name)} removes {_address(run)}"
    status = _say(observation, now, "False", "Removing", message)
    return Decision(status=_untimed(status), removal=True, wake_after=LOOK_SECONDS)


def not_removed(observation: Observation, words: str, now: datetime) -> Decision:
    """What follows a try that came to nothing, for the reason in `words`."""
    deleted = parse_timestamp(observation.document["metadata"]["deletionTimestamp"])
    tried = (now - deleted).total_seconds()
    wait = min(max(tried, FIRST_DELAY_SECONDS), LONGEST_WAIT_SECONDS)
    at = timestamp(now + timedelta(seconds=wait))
    # The mend first: an event's end may be cut off.
    message = f"what the run keeps is not removed, and tried again at {at}; {_GIVE_UP}. {words}"
    status = _say(observation, now, "False", _FAILED, message).model_copy(update={"retry_at": at})
    return Decision(status=status, events=(Event("Warning", _FAILED, message),), wake_after=wait)


def abandoned(observation: Observation, why: str) -> Decision:
    """The run goes, and what it keeps stays, for the reason in `why`."""
    spec = observation.document.get("spec") or {}
    uri = (spec.get("checkpoint") or {}).get("uri", "checkpoint.uri")
    message = f"what the run keeps at {uri} stays there: {why}"
    return Decision(
        status=observation.status, held=False, events=(Event("Warning", "CheckpointsLeft", message),)
    )


def _began(observation: Observation) -> bool:
    """Whether a pod of this run may have written anything."""
    status = observation.status
    seen = status.segments or observation.jobs or observation.left_over or observation.removal
    return bool(seen) or condition(status.conditions, CONDITION) is not None


def _under_way(run: BitNetRun, observation: Observation, job: Job, now: datetime) -> Decision:
    """While there is a job that removes, of this run or of an earlier one of its name."""
    status = observation.status
    if job.state is JobState.ENDING:
        return Decision(status=status, wake_after=PODS_LOOK_SECONDS)
    anew = Decision(status=status, removal=False, wake_after=PODS_LOOK_SECONDS)
    if job.made_from != segments.removal_name(run):
        return anew
    if job.state is JobState.SUCCEEDED:
        words = next((pod.report.message for pod in job.pods if pod.report), f"{_address(run)} is removed")
        status = _untimed(_say(observation, now, "True", "Removed", words))
        event = Event("Normal", CONDITION, words)
        return Decision(status=status, removal=False, held=False, events=(event,))
    if job.state is JobState.FAILED:
        wait = _wait(observation, now)
        if wait is None:
            return not_removed(observation, _words(status, job), now)
        # Its pods stay for their logs until the next try.
        return Decision(status=status, wake_after=wait) if wait else anew
    reason, message = "Removing", f"{job.name} removes {_address(run)}"
    if waiting := [f"{pod.name}: {pod.waiting}" for pod in job.by_rank if pod.waiting]:
        reason, message = _WAITS, f"{'; '.join(waiting)}. To do without, {_GIVE_UP}"
    elif job.state is JobState.SUSPENDED:
        reason, message = _WAITS, f"{job.name} is suspended: {job.message or 'a queue holds it'}"
    status = _untimed(_say(observation, now, "False", reason, message))
    return Decision(status=status, wake_after=LOOK_SECONDS)


def _words(status: BitNetRunStatus, job: Job) -> str:
    """Why a removal failed: by its pod, or by what its pod last waited for."""
    cause, last = first_cause(job), condition(status.conditions, CONDITION)
    if cause.reason == "PodsLost" and last is not None and last.reason == _WAITS:
        return f"{cause.message} ({last.message})"
    return cause.message


def _wait(observation: Observation, now: datetime) -> float | None:
    """Seconds until the next try, 0 where it is due: also where a person has changed the spec since. None
    where the last one did not fail, as far as it is written down."""
    last, at = condition(observation.status.conditions, CONDITION), observation.status.retry_at
    if last is None or last.reason != _FAILED or at is None:
        return None
    if generation(observation.document) > last.observed_generation:
        return 0.0
    return max((parse_timestamp(at) - now).total_seconds(), 0.0)


def _say(
    observation: Observation, now: datetime, status: Literal["True", "False"], reason: str, message: str
) -> BitNetRunStatus:
    said = (
        Said("Running", "False", "Deleted", "the run was deleted"),
        Said(CONDITION, status, reason, message),
    )
    return say(observation.status, observation.document, timestamp(now), *said)


def _untimed(status: BitNetRunStatus) -> BitNetRunStatus:
    return status.model_copy(update={"retry_at": None})


def _address(run: BitNetRun) -> str:
    return run_address(run.spec, run.metadata.namespace, run.metadata.name)
