"""Whether what failed is tried again: limits, waits that double, preemptions that cost nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Segment, SegmentReason, Shape
from bitnet_crds.status import SegmentOutcome
from bitnet_operator.policies.failure import Failure
from bitnet_operator.policies.retry import (
    LONGEST_DELAY_SECONDS,
    GiveUp,
    TryAgain,
    after_failure,
    after_preemption,
    delay,
)

CRASH = Failure("Crashed", "pod-0: boom", 1)
SHAPE = Shape(workers=2, processes_per_worker=1, micro_batch_size=4, accumulation=1)


@pytest.mark.parametrize(
    ("failure", "attempts", "limit", "verdict"),
    [
        pytest.param(CRASH, 0, 2, TryAgain(10, 1), id="the first"),
        pytest.param(CRASH, 1, 2, TryAgain(20, 2), id="waits double"),
        pytest.param(
            CRASH, 2, 2, GiveUp(3, "pod-0: boom (Crashed; all 2 retries are used up)"), id="the limit"
        ),
        pytest.param(
            CRASH, 0, 0, GiveUp(1, "pod-0: boom (Crashed; all 0 retries are used up)"), id="none asked for"
        ),
        pytest.param(CRASH, 9, 20, TryAgain(LONGEST_DELAY_SECONDS, 10), id="the longest wait"),
        pytest.param(
            replace(CRASH, retryable=False),
            0,
            2,
            GiveUp(1, "pod-0: boom (Crashed: trying again would end the same way)"),
            id="what would end the same way",
        ),
    ],
)
def test_a_failure_is_tried_again_within_its_limit(
    failure: Failure, attempts: int, limit: int, verdict: TryAgain | GiveUp
) -> None:
    assert after_failure(failure, attempts, limit, 10) == verdict


@given(limit=st.integers(0, 100))
def test_there_are_as_many_tries_as_were_asked_for(limit: int) -> None:
    attempts, waits = 0, list[float]()
    while isinstance(verdict := after_failure(CRASH, attempts, limit, 10), TryAgain):
        attempts = verdict.attempts
        waits.append(verdict.after_seconds)
    assert (len(waits), verdict.attempts) == (limit, limit + 1)
    assert waits == sorted(waits)
    assert all(0 < wait <= LONGEST_DELAY_SECONDS for wait in waits)


@given(times=st.integers(-5, 10**6), first=st.floats(0, 600))
def test_no_number_of_failures_is_too_many_to_count(times: int, first: float) -> None:
    assert 0 <= delay(times, first) <= LONGEST_DELAY_SECONDS


def segment(outcome: SegmentOutcome, first_step: int = 0, checkpoint_step: int | None = None) -> Segment:
    return Segment(
        index=0,
        reason=SegmentReason.RETRY,
        job="small-0",
        first_step=first_step,
        end_step=10,
        shape=SHAPE,
        outcome=outcome,
        checkpoint_step=checkpoint_step,
        started_at="2026-01-01T00:00:00Z",
    )


PREEMPTED = segment(SegmentOutcome.PREEMPTED, 4, 4)
FURTHER = segment(SegmentOutcome.PREEMPTED, 4, 6)
NEVER_BEGAN = segment(SegmentOutcome.PREEMPTED)
BEFORE_A_BOUNDARY = segment(SegmentOutcome.COMPLETED, 4)
AFTER_IT = segment(SegmentOutcome.PREEMPTED, 6, 6)


def jobs(*segments: Segment) -> list[Segment]:
    """Each in a job of its own."""
    return [each.model_copy(update={"job": f"small-{job}"}) for job, each in enumerate(segments)]


@pytest.mark.parametrize(
    ("segments", "seconds"),
    [
        pytest.param([FURTHER], 0, id="it got further"),
        pytest.param(jobs(PREEMPTED, FURTHER), 0, id="it got further at last"),
        pytest.param([BEFORE_A_BOUNDARY, AFTER_IT], 0, id="before the boundary that its job went over"),
        pytest.param(jobs(BEFORE_A_BOUNDARY, AFTER_IT), 10, id="another job did, in vain"),
        pytest.param([PREEMPTED], 10, id="in vain"),
        pytest.param([NEVER_BEGAN], 10, id="without a checkpoint"),
        pytest.param(jobs(PREEMPTED, PREEMPTED), 20, id="in vain again"),
        pytest.param(jobs(PREEMPTED, FURTHER, PREEMPTED), 10, id="in vain, after it got further"),
        pytest.param(jobs(PREEMPTED, segment(SegmentOutcome.FAILED), PREEMPTED), 10, id="a crash between"),
        pytest.param(jobs(*[PREEMPTED] * 30), LONGEST_DELAY_SECONDS, id="a pod that always ends with 143"),
    ],
)
def test_a_preemption_waits_only_where_it_was_in_vain(segments: list[Segment], seconds: float) -> None:
    assert after_preemption(segments, 10) == seconds
