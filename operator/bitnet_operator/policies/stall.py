"""Stall: a segment that takes no step, and whether ending it can help."""

from dataclasses import dataclass
from datetime import datetime

from bitnet_crds.protocol import TrainerState
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Job

SLOW_FACTOR = 6
"""Loading, evaluating and exporting may take so many times as long as a step."""

_STEPPING = {TrainerState.TRAINING, TrainerState.CHECKPOINTING}
HOPELESS = {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"}
"""What the kubelet says of pods that come up nowhere until somebody mends their template."""
_CAPACITY = {"Unschedulable", "SchedulingGated"}
"""Waiting for machines: pods made anew would stand at the end of the same line."""


@dataclass(frozen=True)
class Stall:
    """Why a segment takes no step."""

    reason: str
    message: str
    ends: bool = True
    """Whether its pods are to end: machines are held for nothing, or new pods may do better."""
    helps: bool = True
    """Whether new pods may do better."""


def judge(job: Job, doing: str | None, since: datetime, now: datetime, limit: int) -> Stall | None:
    """Why a job that can have pods is stalled, nothing having moved since `since`; None while it is not, or
    not yet. `doing` is the trainer's state as last heard, `limit` in seconds."""
    seconds = (now - since).total_seconds()
    if seconds <= (limit if doing is None or doing in _STEPPING else limit * SLOW_FACTOR):
        return None
    # Since when, not for how long: while nothing changes, nothing new is to be written.
    since_then = f"since {timestamp(since)}"
    if job.progress is not None:
        return Stall("NoStep", f"{job.progress.state}, and no step or other sign of work {since_then}")
    pods = job.by_rank
    if waiting := next((pod for pod in pods if pod.waiting), None):
        words = waiting.waiting or ""
        reason = words.partition(":")[0]
        message = f"{waiting.name} has not come up {since_then}: {words}"
        if reason in _CAPACITY:
            # Machines that some pods hold while others wait for theirs are held for nothing.
            return Stall(reason, message, ends=any(pod.running for pod in pods))
        return Stall(reason or "NotStarted", message, helps=reason not in HOPELESS)
    if first := next((pod for pod in pods if pod.rank == 0 and pod.running), None):
        return Stall("Unresponsive", f"{first.name} runs, and has not answered {since_then}")
    return Stall("NoPods", f"the job has had no running pods {since_then}")
