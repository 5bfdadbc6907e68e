"""Stall: what takes no step and for how long, and whether ending it can help."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Progress
from bitnet_crds.protocol import TrainerState
from bitnet_operator.observation import Job, JobState, Pod
from bitnet_operator.policies.stall import HOPELESS, SLOW_FACTOR, Stall, judge
from small_run import START

LIMIT = 600


def judged(job: Job, doing: str | None, seconds: float) -> Stall | None:
    return judge(job, doing, START, START + timedelta(seconds=seconds), LIMIT)


def progress(state: TrainerState = TrainerState.TRAINING) -> Progress:
    return Progress(state=state, total_steps=10, phase="main")


def job(*pods: Pod, says: Progress | None = None) -> Job:
    return Job("small-0", JobState.ACTIVE, None, pods, says)


RUNNING = Pod("pod-0", 0, running=True)


def waiting(why: str, rank: int = 1) -> Pod:
    return Pod(f"pod-{rank}", rank, waiting=why)


@pytest.mark.parametrize(
    ("stuck", "reason", "ends", "helps"),
    [
        pytest.param(job(RUNNING, says=progress()), "NoStep", True, True, id="no step"),
        pytest.param(job(RUNNING), "Unresponsive", True, True, id="it does not answer"),
        pytest.param(job(Pod("pod-1", 1, running=True)), "NoPods", True, True, id="its first pod is missing"),
        pytest.param(job(), "NoPods", True, True, id="no pods"),
        pytest.param(
            job(waiting("ImagePullBackOff: no such tag")), "ImagePullBackOff", True, True, id="no image yet"
        ),
        pytest.param(job(waiting("ContainerCreating")), "ContainerCreating", True, True, id="a slow volume"),
        pytest.param(
            job(waiting("InvalidImageName: a b")), "InvalidImageName", True, False, id="never an image"
        ),
        pytest.param(job(waiting("")), "NoPods", True, True, id="nobody says why"),
        pytest.param(
            job(waiting("Unschedulable: no GPU", 0), waiting("Unschedulable: no GPU")),
            "Unschedulable",
            False,
            True,
            id="no machines for any",
        ),
        pytest.param(
            job(RUNNING, waiting("Unschedulable: no GPU")),
            "Unschedulable",
            True,
            True,
            id="machines for some, held for nothing",
        ),
        pytest.param(job(waiting("SchedulingGated")), "SchedulingGated", False, True, id="held at a gate"),
    ],
)
def test_each_stall_has_its_reason_and_is_ended_where_that_helps(
    stuck: Job, reason: str, ends: bool, helps: bool
) -> None:
    assert judged(stuck, None, LIMIT) is None, "not yet"
    stall = judged(stuck, None, LIMIT + 1)
    assert stall is not None
    assert (stall.reason, stall.ends, stall.helps) == (reason, ends, helps)
    assert "since 2026-01-01T00:00:00Z" in stall.message
    assert judged(stuck, None, LIMIT + 100) == stall, "it says nothing new"


@pytest.mark.parametrize("reason", sorted(HOPELESS))
def test_what_no_new_pod_can_mend_is_ended_and_not_tried_again(reason: str) -> None:
    stall = judged(job(RUNNING, waiting(f"{reason}: …")), None, LIMIT + 1)
    assert stall is not None
    assert (stall.ends, stall.helps) == (True, False)


@pytest.mark.parametrize("state", list(TrainerState))
@pytest.mark.parametrize("answers", [True, False])
def test_loading_and_evaluating_may_take_six_times_as_long_as_a_step(
    state: TrainerState, answers: bool
) -> None:
    steps = state in (TrainerState.TRAINING, TrainerState.CHECKPOINTING)
    limit = LIMIT if steps else SLOW_FACTOR * LIMIT
    busy = job(RUNNING, says=progress(state) if answers else None)
    assert judged(busy, state.value, limit) is None
    assert judged(busy, state.value, limit + 1) is not None


@given(days=st.floats(0.01, 10_000), running=st.booleans())
def test_pods_that_wait_for_machines_are_left_in_their_line(days: float, running: bool) -> None:
    pods: list[Any] = [waiting("Unschedulable: no GPU", 0), waiting("Unschedulable: no GPU", 1)]
    if running:
        pods[0] = RUNNING
    stall = judged(job(*pods), None, days * 86_400)
    assert stall is not None
    assert stall.ends is running


def test_a_clock_that_went_back_makes_no_stall() -> None:
    assert judged(job(RUNNING), None, -3600) is None
