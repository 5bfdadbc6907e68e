"""Phases in other pods, and checkpoints that are further or shorter than was thought."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bitnet_crds import ExitCode
from bitnet_crds.status import RunPhase, SegmentOutcome, SegmentReason
from small_run import DOCUMENT

PHASES = DOCUMENT["spec"]["phases"]
RESCALE = {
    "teacher": {"from": "file:///models/teacher", "resize": "Rescale"},
    "phases": [PHASES[0], PHASES[1], PHASES[2] | {"workers": {"count": 1}}],
}
BOTH_WAYS = RESCALE | {"phases": [PHASES[0], PHASES[1] | {"workers": {"count": 1}}, PHASES[2]]}


@pytest.fixture
def rescaled(make_scene: Callable[..., Any]) -> Any:
    scene = make_scene(**RESCALE)
    scene.decide()
    return scene


def test_the_teachers_phase_begins_in_pods_of_its_own_at_the_boundary(rescaled) -> None:
    assert (rescaled.last.first_step, rescaled.last.end_step, rescaled.last.shape.workers) == (0, 6, 2)
    rescaled.decide(rescaled.says(6))
    assert len(rescaled.status.segments) == 1, "no segment in pods that are not its own"
    rescaled.decide(rescaled.boundary(6))
    first = rescaled.last
    assert (first.outcome, first.last_step, first.checkpoint_step) == (SegmentOutcome.COMPLETED, 6, 6)
    assert (rescaled.status.phase, rescaled.status.attempts) == (RunPhase.RUNNING, 0)
    decision = rescaled.decide()
    last = rescaled.last
    assert (decision.ensure, last.reason) == ("small-1", SegmentReason.TEACHER_PHASE)
    assert (last.first_step, last.end_step, last.shape.workers) == (6, 10, 1)
    assert last.shape.global_batch_size == first.shape.global_batch_size
    assert last.pods != first.pods


def test_phases_go_to_fewer_pods_and_back(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(**BOTH_WAYS)
    scene.decide()
    for kept in (2, 6):
        scene.decide(scene.boundary(kept))
        scene.decide()
    assert [(s.first_step, s.end_step, s.shape.workers, s.reason) for s in scene.status.segments] == [
        (0, 2, 2, "Start"),
        (2, 6, 1, "Phase"),
        (6, 10, 2, "TeacherPhase"),
    ]
    scene.decide(scene.succeeded(scene.ended(0, 10)))
    assert (scene.status.phase, scene.status.step) == (RunPhase.SUCCEEDED, 10)


def test_pods_that_ended_well_and_left_no_word_got_to_the_boundary(rescaled) -> None:
    rescaled.decide(rescaled.succeeded())
    rescaled.decide()
    assert (rescaled.last.reason, rescaled.last.first_step) == (SegmentReason.TEACHER_PHASE, 6)


@pytest.mark.parametrize(
    ("kept", "reason", "first_step", "end_step", "workers"),
    [
        pytest.param(4, SegmentReason.RETRY, 4, 6, 2, id="short of it"),
        pytest.param(8, SegmentReason.RETRY, 8, 10, 1, id="beyond it"),
        pytest.param(None, SegmentReason.RETRY, 0, 6, 2, id="none"),
    ],
)
def test_pods_that_found_a_checkpoint_of_another_phase_leave_it_to_that_phases(
    rescaled, kept: int | None, reason: SegmentReason, first_step: int, end_step: int, workers: int
) -> None:
    if kept is not None and kept < 6:
        rescaled.decide(rescaled.boundary(6))
        rescaled.decide()
    rescaled.decide(rescaled.boundary(kept))
    rescaled.decide()
    last = rescaled.last
    assert (last.reason, last.first_step, last.end_step) == (reason, first_step, end_step)
    assert last.shape.workers == workers


def test_a_retry_goes_on_in_the_pods_of_its_checkpoints_phase(rescaled) -> None:
    rescaled.decide(rescaled.boundary(6))
    rescaled.decide()
    rescaled.decide(rescaled.failed(rescaled.ended(ExitCode.CRASHED, 6)))
    rescaled.passes(10)
    rescaled.decide()
    assert (rescaled.last.reason, rescaled.last.first_step, rescaled.last.shape.workers) == ("Retry", 6, 1)


@pytest.mark.parametrize("loads", [False, True], ids=["at once", "after it loaded"])
@pytest.mark.parametrize(
    ("begun", "first_step", "end_step", "micro"),
    [
        pytest.param(4, 4, 6, 4, id="as thought"),
        pytest.param(2, 2, 6, 4, id="shorter"),
        pytest.param(5, 5, 6, 4, id="further"),
        pytest.param(8, 8, 10, 2, id="in the next phase"),
        pytest.param(0, 0, 6, 4, id="none at all"),
    ],
)
def test_a_segment_begins_where_its_pods_say_that_they_began(
    scene, loads: bool, begun: int, first_step: int, end_step: int, micro: int
) -> None:
    scene.decide()
    scene.decide(scene.says(5, 4))
    scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 4)))
    scene.passes(10)
    scene.decide()
    if loads:
        scene.decide(scene.says(0, state="LoadingModel", begun_step=None))
        assert (scene.last.first_step, scene.status.step) == (4, 4)
        scene.passes(15)
    scene.decide(scene.says(begun, begun, state="Training", begun_step=begun))
    last = scene.last
    assert (last.first_step, last.end_step, last.shape.micro_batch_size) == (first_step, end_step, micro)
    assert (last.last_step, scene.status.step) == (begun, begun)
    scene.passes(15)
    scene.decide(scene.says(begun + 1, begun, begun_step=begun))
    assert scene.status.step == begun + 1


def test_memory_that_ran_out_before_the_first_step_is_the_phases_that_was_to_begin(scene) -> None:
    scene.decide()
    scene.decide(scene.says(8, 8))
    scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 8)))
    scene.passes(10)
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.OUT_OF_MEMORY, step=0)))
    assert scene.status.adjustments.halvings == {"distill": 1}
    scene.decide()
    assert (scene.last.reason, scene.last.first_step) == (SegmentReason.OUT_OF_MEMORY, 8)
    assert (scene.last.shape.micro_batch_size, scene.last.shape.accumulation) == (1, 4)


def test_a_change_of_one_phases_pods_begins_a_segment_only_in_that_phase(rescaled) -> None:
    job = rescaled.says(2)
    changed = [*RESCALE["phases"][:2], PHASES[2] | {"workers": {"count": 2}}]
    rescaled.change(phases=changed)
    rescaled.decide(job)
    assert rescaled.last.ending is None
    rescaled.decide(rescaled.boundary(6))
    rescaled.decide()
    assert rescaled.last.shape.workers == 2


def test_left_over_pods_are_waited_for(rescaled) -> None:
    rescaled.decide(rescaled.boundary(6))
    waits = rescaled.decide(left_over=("small-0-worker-0",))
    assert (waits.ensure, waits.wake_after) == (None, 2)
    assert rescaled.condition("Running").reason == "PodsStillRun"
    assert "small-0-worker-0" in rescaled.condition("Running").message
    ended = replace(rescaled.succeeded(), pods=())
    assert rescaled.decide(ended).ensure == "small-1"
