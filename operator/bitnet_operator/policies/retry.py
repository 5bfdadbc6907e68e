"""Retry: whether what failed is tried again, and after how long."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitnet_crds import Segment
from bitnet_crds.status import SegmentOutcome
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

    A failure that would repeat itself is not tried again. Otherwise the wait doubles with each attempt.
    """
    attempts += 1
    if not failure.retryable:
        return GiveUp(attempts, f"{failure.message} ({failure.reason}: trying again would end the same way)")
    if attempts > limit:
        return GiveUp(attempts, f"{failure.message} ({failure.reason}; all {limit} retries are used up)")
    return TryAgain(delay(attempts, first_delay), attempts)


def after_preemption(segments: Sequence[Segment], first_delay: float) -> float:
    """Seconds until a run goes on whose last segment was preempted: none where that one got further, and else
    longer with each that did not, so that pods which end at once do not begin without end."""
    return delay(in_vain(segments), first_delay)


def in_vain(segments: Sequence[Segment]) -> int:
    """How many segments in a row, up to the last, were preempted while their job had committed no checkpoint
    that is newer than where it began. Segments may have gone before in the same job."""
    began = dict[str, int]()
    for segment in segments:
        began.setdefault(segment.job, segment.first_step)
    count = 0
    for segment in reversed(segments):
        got_further = (segment.checkpoint_step or 0) > began[segment.job]
        if segment.outcome is not SegmentOutcome.PREEMPTED or got_further:
            break
        count += 1
    return count


def delay(times: int, first_delay: float) -> float:
    """Seconds to wait before the `times`-th try in a row: none before the 0th, doubling from the first on."""
    if times <= 0:
        return 0.0
    return min(first_delay * 2.0 ** min(times - 1, 16), LONGEST_DELAY_SECONDS)
