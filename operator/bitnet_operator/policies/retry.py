"""Retry: whether a failed segment is tried again, and after how long."""

from dataclasses import dataclass

from bitnet_operator.policies.failure import Failure

FIRST_DELAY_SECONDS = 10.0
LONGEST_DELAY_SECONDS = 300.0


@dataclass(frozen=True)
class TryAgain:
    """Begin another segment from the last checkpoint."""

    after_seconds: float
    attempts: int
    """Failed segments that count against the limit, this one included."""


@dataclass(frozen=True)
class GiveUp:
    """The run has failed."""

    attempts: int
    message: str


def after_failure(failure: Failure, attempts: int, limit: int, first_delay: float) -> TryAgain | GiveUp:
    """What follows a failed segment, when `attempts` failures have counted before it.

    A preemption counts no attempt. A failure that would repeat itself is not tried again. Otherwise the wait
    doubles with each attempt.
    """
    if failure.preempted:
        return TryAgain(first_delay, attempts)
    attempts += 1
    if not failure.retryable:
        return GiveUp(attempts, f"{failure.message} ({failure.reason}: trying again would end the same way)")
    if attempts > limit:
        return GiveUp(attempts, f"{failure.message} ({failure.reason}; all {limit} retries are used up)")
    return TryAgain(min(first_delay * 2 ** min(attempts - 1, 16), LONGEST_DELAY_SECONDS), attempts)
