"""A teacher that is tuned before the run: segments of its own, whose steps are none of the run's."""

from collections.abc import Callable
from typing import Any

import pytest

from bitnet_crds import ExitCode
from bitnet_crds.protocol import Fault
from bitnet_crds.status import RunPhase, SegmentOutcome, SegmentReason
from bitnet_crds.tuning import TUNING

TEACHER = {"from": "file:///models/teacher", "tune": {"tokens": 16 * 8 * 5}}
"""Tuned in 5 steps."""


@pytest.fixture
def tuned(make_scene: Callable[..., Any]) -> Any:
    scene = make_scene(teacher=TEACHER)
    scene.decide()
    return scene


def test_the_first_segment_is_the_tuning_with_its_own_steps(tuned) -> None:
    last = tuned.last
    assert (last.reason, last.purpose) == (SegmentReason.TEACHER_TUNING, "TuneTeacher")
    assert (last.job, last.first_step, last.end_step) == ("small-0", 0, 5)
    assert last.shape == tuned.plan.tuning.shape


def test_its_steps_and_checkpoints_are_never_the_runs(tuned) -> None:
    decision = tuned.decide(tuned.says(3, 2, phase="tuning", tokens=384))
    assert (tuned.last.last_step, tuned.last.checkpoint_step) == (3, 2)
    status = decision.status
    assert (status.step, status.tokens, status.checkpoint_step) == (0, 0, None)
    assert (status.loss, status.doing, status.tokens_per_second) == ("3.0000", "Training", 100)
    tuned.decide(tuned.succeeded(tuned.ended(0, 5)))
    assert (tuned.last.outcome, tuned.last.last_step) == (SegmentOutcome.COMPLETED, 5)
    assert (tuned.status.step, tuned.status.checkpoint_step) == (0, None)


def test_the_run_begins_when_the_teacher_is_tuned(tuned) -> None:
    tuned.decide(tuned.succeeded(tuned.ended(0, 5, artifacts={"Teacher": "file:///runs/teacher"})))
    decision = tuned.decide()
    last = tuned.last
    assert (decision.ensure, last.reason, last.purpose) == ("small-1", SegmentReason.START, "Train")
    assert (last.first_step, last.end_step) == (0, 6)
    assert decision.status.artifacts == {"Teacher": "file:///runs/teacher"}
    tuned.decide(tuned.succeeded(tuned.ended(0, 10)))
    assert tuned.status.phase is RunPhase.SUCCEEDED


def test_a_tuning_that_was_there_already_took_no_step_and_is_done(tuned) -> None:
    tuned.decide(tuned.succeeded(tuned.ended(0, step=5)))
    assert tuned.last.then is SegmentReason.START


def test_it_is_tried_again_from_its_own_checkpoint(tuned) -> None:
    tuned.decide(tuned.says(3, 2, phase="tuning"))
    tuned.decide(tuned.failed(tuned.ended(ExitCode.CRASHED, 4)))
    assert tuned.last.checkpoint_step == 4
    assert tuned.status.attempts == 1, "it got further, so the count began anew"
    tuned.passes(10)
    tuned.decide()
    last = tuned.last
    assert (last.reason, last.purpose, last.first_step) == (SegmentReason.RETRY, "TuneTeacher", 4)
    assert (last.end_step, tuned.status.checkpoint_step) == (5, None)


def test_a_checkpoint_of_its_own_is_remembered_over_pods_that_left_no_word(tuned) -> None:
    tuned.decide(tuned.says(3, 2, phase="tuning"))
    tuned.decide(tuned.failed(tuned.ended(ExitCode.CRASHED, 2)))
    tuned.passes(10)
    tuned.decide()
    tuned.decide()  # the second job was deleted before it said anything
    tuned.passes(20)
    tuned.decide()
    assert (tuned.last.job, tuned.last.first_step) == ("small-2", 2)


def test_its_attempts_have_the_runs_limit(tuned) -> None:
    for _ in range(3):
        tuned.decide(tuned.failed(tuned.ended(ExitCode.CRASHED)))
        tuned.passes(1000)
        tuned.decide()
    assert tuned.status.phase is RunPhase.FAILED
    assert [s.purpose for s in tuned.status.segments] == ["TuneTeacher"] * 3


def test_losses_that_are_not_finite_fail_it_for_there_is_no_roll_back(tuned) -> None:
    report = tuned.ended(ExitCode.NON_FINITE, 2, fault=Fault(first_step=3, steps=4), checkpoints=(2,))
    tuned.decide(tuned.failed(report))
    assert tuned.status.phase is RunPhase.FAILED
    assert tuned.status.adjustments.rollbacks == ()
    assert tuned.last.exit_reason == "NonFinite"


def test_memory_that_runs_out_halves_the_tunings_micro_batch_alone(tuned) -> None:
    tuned.decide(tuned.failed(tuned.ended(ExitCode.OUT_OF_MEMORY, step=3)))
    assert tuned.status.adjustments.halvings == {TUNING: 1}
    assert tuned.status.attempts == 0
    tuned.decide()
    last = tuned.last
    assert (last.reason, last.purpose) == (SegmentReason.OUT_OF_MEMORY, "TuneTeacher")
    assert (last.shape.micro_batch_size, last.shape.accumulation) == (2, 2)
    assert tuned.plan.phases[0].shape.micro_batch_size == 4


def test_a_stop_and_a_preemption_go_on_with_the_tuning(tuned) -> None:
    tuned.decide(tuned.failed(tuned.ended(ExitCode.PREEMPTED, 3)), stop=True)
    assert tuned.status.phase is RunPhase.SUSPENDED
    tuned.decide()
    assert (tuned.last.reason, tuned.last.purpose, tuned.last.first_step) == ("Resumed", "TuneTeacher", 3)
    tuned.decide(tuned.failed(tuned.ended(ExitCode.PREEMPTED, 4)))
    tuned.decide()
    assert (tuned.last.reason, tuned.last.purpose, tuned.last.first_step) == ("Preempted", "TuneTeacher", 4)


def test_the_condition_says_that_the_teacher_is_tuned(tuned) -> None:
    tuned.decide(tuned.says(3, 2, phase="tuning"))
    assert tuned.condition("Running").message == "segment 0 TeacherTuning, phase tuning"
    tuned.decide(tuned.succeeded(tuned.ended(0, 5)))
    assert tuned.condition("Running").message == "the teacher is tuned, in 5 steps; goes on with Start"


@pytest.mark.parametrize("ended", [False, True])
def test_the_micro_batch_that_was_found_for_it_is_no_phases(
    make_scene: Callable[..., Any], *, ended: bool
) -> None:
    """Its pods call their one phase as they like, and a phase of the run may be called the same."""
    workers = {"count": 2, "gpusPerWorker": 1, "microBatchSize": "Auto"}
    scene = make_scene(teacher=TEACHER, workers=workers)
    scene.decide()
    assert scene.last.shape.micro_batch_size == 4
    found = {"tuning": 2}
    if ended:
        scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 4, micro_batches=found)))
    else:
        scene.decide(scene.says(1, phase="tuning", micro_batches=found))
    assert scene.status.adjustments.micro_batches == {TUNING: 2}
    assert (scene.last.shape.micro_batch_size, scene.last.shape.accumulation) == (2, 2)
    assert all(phase.auto for phase in scene.plan.phases)
