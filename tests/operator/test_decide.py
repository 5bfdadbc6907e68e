"""The life of a run as `decide` drives it, one observation at a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_crds import InvalidRun, TerminationReport, parse_run
from bitnet_crds.protocol import Checkpoint, Evaluation, ExitCode
from bitnet_crds.status import BitNetRunStatus, RunPhase, SegmentOutcome, SegmentReason
from bitnet_operator.failing import child_refused, reject
from bitnet_operator.observation import Job, JobState, Observation, Pod


def condition(status: BitNetRunStatus, type_: str) -> Any:
    return next((each for each in status.conditions if each.type == type_), None)


def pod(code: int, rank: int = 0, message: str = "", checkpoint: int | None = None, step: int = 0) -> Pod:
    report = TerminationReport(
        exit_code=code,
        reason=ExitCode(code).label,
        message=message,
        step=step,
        checkpoint=None if checkpoint is None else Checkpoint(step=checkpoint, uri="file:///runs/c"),
    )
    return Pod(f"pod-{rank}", rank, exit_code=code, report=report)


def test_a_new_run_begins_with_one_job_in_the_shape_of_its_first_stretch(scene) -> None:
    decision = scene.decide()
    (segment,) = decision.status.segments
    assert decision.ensure == segment.job == "small-0"
    assert (segment.reason, segment.first_step, segment.end_step) == (SegmentReason.START, 0, 6)
    assert (segment.shape.micro_batch_size, segment.shape.accumulation) == (4, 1)
    assert decision.status.phase is RunPhase.RUNNING
    assert condition(decision.status, "Accepted").status == "True"
    assert decision.wake_after == 15


def test_deciding_again_before_the_status_was_written_names_the_same_child(scene) -> None:
    first = scene.decide()
    scene.status = BitNetRunStatus()
    made = Job("small-0", JobState.ACTIVE, made_from=first.status.segments[-1].pods)
    again = scene.decide(made)
    assert (again.ensure, again.delete) == (first.ensure, ())


def test_a_job_that_was_made_before_its_status_was_written_is_made_anew_where_the_spec_has_changed(
    scene,
) -> None:
    made = Job("small-0", JobState.ACTIVE, made_from=scene.decide().status.segments[-1].pods)
    scene.status = BitNetRunStatus()
    scene.change(workers={"count": 1, "gpusPerWorker": 0, "microBatchSize": 4})
    decision = scene.decide(made)
    assert (decision.ensure, decision.delete, decision.status.segments) == (None, ("small-0",), ())
    assert scene.decide(replace(made, state=JobState.ENDING)).ensure is None
    assert scene.decide().ensure == "small-0"


def test_a_job_that_trains_changes_nothing_but_progress(scene) -> None:
    scene.decide()
    decision = scene.decide(scene.active(step=1))
    assert (decision.ensure, decision.tell, decision.delete) == (None, None, ())
    assert (decision.status.step, decision.status.loss, decision.status.training_phase) == (
        1,
        "3.0000",
        "warmup",
    )
    assert condition(decision.status, "Running").status == "True"


def test_progress_is_written_at_most_once_an_interval(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=1))
    scene.passes(5)
    assert scene.decide(scene.active(step=2)).status.step == 1
    scene.passes(10)
    assert scene.decide(scene.active(step=2)).status.step == 2


def test_an_unchanged_world_writes_nothing(scene) -> None:
    scene.decide()
    before = scene.decide(scene.active(step=1)).status
    scene.passes(60)
    assert scene.decide(scene.active(step=1)).status == before


def test_the_teacher_phase_is_a_segment_of_its_own_in_the_same_job(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=5))
    decision = scene.decide(scene.active(step=6))  # within the interval: a boundary is written at once
    first, second = decision.status.segments
    assert (first.outcome, first.last_step) == (SegmentOutcome.COMPLETED, 6)
    assert (second.reason, second.job) == (SegmentReason.TEACHER_PHASE, first.job)
    assert (second.first_step, second.end_step) == (6, 10)
    assert (second.shape.micro_batch_size, second.shape.accumulation) == (2, 2)
    assert second.shape.global_batch_size == first.shape.global_batch_size
    assert decision.ensure is None
    assert [event.reason for event in decision.events] == ["TeacherPhase"]


def test_success_closes_every_segment_and_keeps_what_came_out(scene) -> None:
    scene.decide()
    evaluation = Evaluation(
        tokens=9, perplexity_original="1", perplexity_before="9", perplexity_after="2", perplexity_teacher="1"
    )
    report = TerminationReport(
        exit_code=0,
        reason="Succeeded",
        step=10,
        evaluation=evaluation,
        artifacts={"HuggingFace": "file:///x"},
    )
    decision = scene.decide(scene.succeeded(Pod("pod-0", 0, exit_code=0, report=report)))
    status = decision.status
    assert status.phase is RunPhase.SUCCEEDED
    assert [segment.outcome for segment in status.segments] == [SegmentOutcome.COMPLETED] * 2
    assert (status.step, status.evaluation, status.artifacts) == (
        10,
        evaluation,
        {"HuggingFace": "file:///x"},
    )
    assert decision.wake_after is None
    assert scene.decide().status == status


def test_a_failed_pods_own_words_and_code_are_in_the_status(scene) -> None:
    scene.decide()
    decision = scene.decide(scene.failed(pod(ExitCode.TEACHER_UNAVAILABLE, message="no folder /models/t")))
    (segment,) = decision.status.segments
    assert segment.exit_code == 4
    assert segment.exit_reason == "TeacherUnavailable"
    assert "no folder /models/t" in (segment.message or "")
    assert decision.status.phase is RunPhase.FAILED  # trying again would end the same way
    assert "no folder /models/t" in condition(decision.status, "Failed").message
    assert decision.ensure is None


def test_the_rank_that_was_killed_is_the_cause_and_not_the_one_that_lost_it(scene) -> None:
    scene.decide()
    decision = scene.decide(
        scene.failed(pod(ExitCode.PEER_LOST, rank=0), Pod("pod-1", 1, exit_code=137, message="Error"))
    )
    assert decision.status.segments[-1].exit_code == 137
    assert decision.status.segments[-1].outcome is SegmentOutcome.FAILED


def test_a_retry_waits_and_goes_on_from_the_checkpoint(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=4, checkpoint=4))
    failed = scene.decide(scene.failed(pod(ExitCode.CRASHED, checkpoint=4, step=5)))
    assert (failed.ensure, failed.wake_after, failed.status.attempts) == (None, 10, 1)
    assert scene.decide(Job("small-0", JobState.FAILED)).ensure is None
    scene.passes(10)
    retried = scene.decide(Job("small-0", JobState.FAILED))
    segment = retried.status.segments[-1]
    assert (retried.ensure, segment.reason, segment.first_step) == ("small-1", SegmentReason.RETRY, 4)
    assert retried.status.retry_at is None


def test_a_retry_after_the_boundary_begins_in_the_teachers_shape(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=8, checkpoint=8))
    scene.decide(scene.failed(pod(ExitCode.CRASHED, checkpoint=8, step=8)))
    scene.passes(10)
    segment = scene.decide().status.segments[-1]
    assert (segment.first_step, segment.end_step, segment.shape.micro_batch_size) == (8, 10, 2)


def test_retries_end_at_their_limit_with_waits_that_double(scene) -> None:
    waits = []
    scene.decide()
    while scene.status.phase is RunPhase.RUNNING:
        decision = scene.decide(scene.failed(pod(ExitCode.CRASHED, message="boom")))
        waits.append(decision.wake_after)
        if decision.wake_after is not None:
            scene.passes(decision.wake_after)
            scene.decide()
    assert waits == [10, 20, None]
    assert (scene.status.phase, scene.status.attempts) == (RunPhase.FAILED, 3)
    assert "all 2 retries are used up" in condition(scene.status, "Failed").message
    assert [s.reason for s in scene.status.segments] == ["Start", "Retry", "Retry"]


def test_a_preemption_costs_no_attempt(scene) -> None:
    scene.decide()
    decision = scene.decide(scene.failed(pod(ExitCode.PREEMPTED, checkpoint=2, step=2)))
    assert (decision.status.attempts, decision.status.segments[-1].outcome) == (0, SegmentOutcome.PREEMPTED)
    scene.passes(10)
    assert scene.decide().status.segments[-1].reason is SegmentReason.PREEMPTED


def test_a_checkpoint_that_a_preempted_pod_tells_of_begins_the_count_of_attempts_anew(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(pod(ExitCode.CRASHED)))
    scene.passes(10)
    scene.decide()
    further = scene.decide(scene.failed(pod(ExitCode.PREEMPTED, checkpoint=4, step=4)))
    assert further.status.attempts == 0
    scene.decide()
    assert scene.decide(scene.failed(pod(ExitCode.CRASHED, checkpoint=4, step=4))).status.attempts == 1


def test_an_evicted_pod_is_a_preemption_whatever_the_others_ran_into(scene) -> None:
    scene.decide()
    evicted = Pod("pod-1", 1, exit_code=137, disruption="EvictionByEvictionAPI: drained")
    decision = scene.decide(scene.failed(pod(ExitCode.CRASHED), evicted))
    assert decision.status.segments[-1].outcome is SegmentOutcome.PREEMPTED


def test_a_job_that_somebody_deleted_is_an_attempt_with_a_name(scene) -> None:
    scene.decide()
    decision = scene.decide()
    assert decision.status.segments[-1].exit_reason == "JobDeleted"
    assert decision.status.attempts == 1


def test_a_stop_asks_the_job_to_end_and_a_later_start_resumes(scene) -> None:
    scene.decide()
    meant = scene.decide(scene.active(step=3), stop=True)
    # It is written down before the pods are asked, so that an operator that dies in between is understood.
    assert (meant.tell, meant.wake_after) == (None, 0)
    assert meant.status.segments[-1].ending.reason == "Suspended"
    asked = scene.decide(scene.active(step=3), stop=True).tell
    assert (asked.job, asked.pod, asked.words.stop) == ("small-0", "pod-0", True)
    stopped = scene.decide(scene.failed(pod(ExitCode.PREEMPTED, checkpoint=3, step=3)), stop=True)
    scene.decide(stop=True)
    assert stopped.status.phase is RunPhase.SUSPENDED
    resumed = scene.decide()
    segment = resumed.status.segments[-1]
    assert (segment.reason, segment.first_step, resumed.status.attempts) == (SegmentReason.RESUMED, 3, 0)


def test_only_the_last_ended_job_is_kept_for_its_logs(scene) -> None:
    scene.decide()
    ended: list[Job] = []
    for _ in range(2):
        ended.append(scene.failed(pod(ExitCode.CRASHED)))
        scene.decide(*ended)
        scene.passes(1000)
        decision = scene.decide(*ended)
    assert decision.ensure == "small-2"
    assert decision.delete == ("small-0",)


def test_an_invalid_run_fails_once_and_makes_nothing(document: dict[str, Any], scene) -> None:
    document["spec"]["phases"][-1]["until"] = "90%"
    with pytest.raises(InvalidRun) as invalid:
        parse_run(document)
    decision = reject(Observation(document, BitNetRunStatus()), invalid.value, scene.now)
    assert decision.ensure is None
    assert decision.status.phase is RunPhase.FAILED
    assert "100%" in condition(decision.status, "Accepted").message
    again = reject(Observation(document, decision.status), invalid.value, scene.now + timedelta(days=1))
    assert (again.status, again.events) == (decision.status, ())


def test_a_template_that_the_server_refuses_fails_the_run_with_the_servers_words(scene) -> None:
    decision = child_refused(
        Observation(scene.document, BitNetRunStatus()), 'unknown field "imagee"', scene.now
    )
    assert "imagee" in condition(decision.status, "Failed").message


def test_transition_times_move_only_when_a_condition_changes(scene) -> None:
    scene.decide()
    before = condition(scene.decide(scene.active(step=1)).status, "Running")
    scene.passes(100)
    after = condition(scene.decide(scene.active(step=5)).status, "Running")
    assert before.last_transition_time == after.last_transition_time


def test_a_retry_that_dies_at_once_tells_nothing_of_a_phase_it_never_reached(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=9, checkpoint=4))
    scene.decide(scene.failed(pod(ExitCode.CRASHED, checkpoint=4, step=9)))
    scene.passes(1000)
    scene.decide()
    status = scene.decide(scene.failed(pod(ExitCode.CRASHED))).status
    (retry,) = [segment for segment in status.segments if segment.job == "small-1"]
    assert (retry.reason, retry.outcome, retry.first_step, retry.last_step) == ("Retry", "Failed", 4, 4)


def test_a_retry_that_still_loads_does_not_fall_back_to_step_0(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=4, checkpoint=4))
    scene.decide(scene.failed(pod(ExitCode.CRASHED, checkpoint=4, step=5)))
    scene.passes(1000)
    scene.decide()
    scene.passes(1000)
    status = scene.decide(scene.active(step=0)).status
    assert (status.step, status.segments[-1].last_step) == (4, 4)


def test_a_kill_that_a_person_asked_for_is_no_failure(scene) -> None:
    scene.decide()
    status = scene.decide(scene.failed(pod(ExitCode.KILLED)), stop=True).status
    assert (status.phase, status.attempts) == (RunPhase.SUSPENDED, 0)


def test_a_clock_that_went_back_does_not_freeze_progress(scene) -> None:
    scene.decide()
    scene.decide(scene.active(step=1))
    scene.passes(-3600)
    assert scene.decide(scene.active(step=5)).status.step == 5


def test_a_clock_that_went_back_does_not_hold_up_a_retry(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(pod(ExitCode.CRASHED)))
    scene.passes(-86_400)
    assert scene.decide().ensure == "small-1"


def stricter(scene) -> InvalidRun:
    scene.document["spec"]["phases"][-1]["until"] = "90%"
    with pytest.raises(InvalidRun) as invalid:
        parse_run(scene.document)
    return invalid.value


def test_a_stricter_operator_leaves_runs_that_succeeded_alone(scene) -> None:
    scene.decide()
    status = scene.decide(scene.succeeded()).status
    decision = reject(Observation(scene.document, status), stricter(scene), scene.now)
    assert (decision.status, decision.events) == (status, ())


def test_a_stricter_operator_stops_what_it_says_has_failed(scene) -> None:
    scene.decide()
    job = scene.active(step=1)
    status = scene.decide(job).status
    decision = reject(Observation(scene.document, status, (job,)), stricter(scene), scene.now)
    assert decision.delete == ("small-0",)
    assert decision.status.phase is RunPhase.FAILED
    assert decision.status.segments[-1].outcome is SegmentOutcome.FAILED


JOB_ENDS = st.sampled_from([1, 2, 4, 7, 137, 143, 200])
MOVES = st.lists(
    st.one_of(st.tuples(st.just("step"), st.integers(0, 10)), st.tuples(st.just("end"), JOB_ENDS)),
    max_size=25,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_whatever_happens_one_segment_runs_and_attempts_stay_within_their_limit(
    make_scene: Callable[[], Any], moves: list[tuple[str, int]]
) -> None:
    scene = make_scene()
    checkpoint = 0
    scene.decide()
    for move, value in moves:
        if scene.status.phase.ended:
            break
        if scene.status.retry_at is not None:
            scene.passes(1000)
            scene.decide()
        if move == "step":
            checkpoint = max(checkpoint, value - value % 2)
            scene.passes(15)
            scene.decide(scene.active(step=value, checkpoint=checkpoint))
        else:
            scene.decide(scene.failed(pod(value, checkpoint=checkpoint, step=checkpoint)))
    status = scene.status
    running = [segment for segment in status.segments if segment.outcome is SegmentOutcome.RUNNING]
    assert len(running) <= 1
    assert running in ([], [status.segments[-1]])
    assert status.attempts <= scene.run.spec.retries + 1
    assert [segment.index for segment in status.segments] == list(range(len(status.segments)))
    assert all(0 <= s.first_step < s.end_step <= 10 for s in status.segments if s.first_step < 10)
