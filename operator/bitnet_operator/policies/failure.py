"""Failure: which of a failed job's pods is the cause, and what it said."""

from dataclasses import dataclass

from bitnet_crds import ExitCode, TerminationReport
from bitnet_crds.protocol import exit_code_label
from bitnet_operator.observation import Job, Pod


@dataclass(frozen=True)
class Failure:
    """Why a job ended before its last step."""

    reason: str
    """The exit code's name, or what Kubernetes did."""
    message: str
    exit_code: int | None = None
    preempted: bool = False
    """Whether the pods were stopped from outside, through no fault of the run."""
    retryable: bool = True
    """Whether trying the same again may help."""
    report: TerminationReport | None = None
    """What the pod said itself."""


def first_cause(job: Job) -> Failure:
    """The failure behind a failed job.

    A rank that lost its peer is never the cause while another one ended too, and where Kubernetes stopped a
    pod, that comes before whatever the others then ran into.
    """
    ended = [pod for pod in job.pods if pod.exit_code not in (None, 0) or pod.disruption or pod.failed]
    if not ended:
        return Failure("PodsLost", job.message or "the job's pods are gone and left no word")
    cause = min(ended, key=lambda pod: (_rank_of_cause(pod), pod.rank))
    if cause.disruption:
        disrupted = f"{cause.name}: {cause.disruption}"
        return Failure("Preempted", disrupted, cause.exit_code, preempted=True, report=cause.report)
    # A trainer that ended well says nothing of why its pod failed.
    said = cause.report.message if cause.report and cause.report.exit_code else cause.message
    message = f"{cause.name}: {said or 'ended without a word'}"
    if not cause.exit_code:
        return Failure("PodFailed", message, report=cause.report)
    return Failure(
        reason=exit_code_label(cause.exit_code),
        message=message,
        exit_code=cause.exit_code,
        preempted=cause.exit_code == ExitCode.PREEMPTED,
        retryable=_retryable(cause.exit_code) or bool(cause.report and cause.report.transient),
        report=cause.report,
    )


def _rank_of_cause(pod: Pod) -> int:
    """0 is most likely the cause; higher ones are its consequences."""
    if pod.disruption:
        return 0
    return {int(ExitCode.PREEMPTED): 2, int(ExitCode.PEER_LOST): 3}.get(pod.exit_code or 0, 1)


def _retryable(exit_code: int) -> bool:
    """An unknown code may be anything, so it is worth another try."""
    return {int(code): code.retryable for code in ExitCode}.get(exit_code, True)
