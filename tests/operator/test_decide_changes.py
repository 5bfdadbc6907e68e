"""What a person changes while a run exists: its pods, what they are told, suspension, a refused template."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bitnet_crds import BitNetRunStatus, ExitCode, InvalidRun, parse_run
from bitnet_crds.status import RunPhase, SegmentOutcome, SegmentReason
from bitnet_operator.decision import Decision
from bitnet_operator.failing import child_refused, reject
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Job, JobState, Observation
from small_run import DOCUMENT, START

WORKERS = DOCUMENT["spec"]["workers"]
PHASES = DOCUMENT["spec"]["phases"]
TEMPLATE = {"spec": {"nodeSelector": {"zone": "b"}}}


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param({"count": 1}, id="workers"),
        pytest.param({"template": TEMPLATE}, id="template"),
        pytest.param({"microBatchSize": 2}, id="micro batch"),
        pytest.param({"parallelism": "FSDP"}, id="parallelism"),
    ],
)
def test_a_change_of_the_pods_begins_a_segment_from_a_checkpoint(scene, workers) -> None:
    scene.decide()
    scene.decide(scene.says(3, 2))
    scene.change(workers=WORKERS | workers)
    scene.decide(scene.says(3, 2))
    assert scene.last.ending.reason == "SpecChanged"
    assert scene.decide(scene.says(3, 2)).tell.words.stop
    decision = scene.decide(scene.failed(scene.ended(ExitCode.PREEMPTED, 3)))
    assert [event.type for event in decision.events] == ["Normal"]
    assert (scene.last.outcome, scene.status.attempts) == (SegmentOutcome.ENDED, 0)
    decision = scene.decide()
    last = scene.last
    assert (decision.ensure, last.reason, last.first_step) == ("small-1", SegmentReason.SPEC_CHANGE, 3)
    assert last.shape.workers == workers.get("count", 2)
    assert last.shape.micro_batch_size == workers.get("microBatchSize", 4)
    scene.decide(scene.says(4, 3))
    assert scene.last.ending is None, "once"


def test_a_change_that_is_taken_back_before_it_was_acted_on_changes_nothing(scene) -> None:
    scene.decide()
    scene.change(workers=WORKERS | {"count": 1})
    scene.change(workers=WORKERS)
    scene.decide(scene.says(3, 2))
    assert scene.last.ending is None


def test_a_change_between_segments_is_taken_up_by_the_next(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 2)))
    scene.change(workers=WORKERS | {"count": 1})
    scene.passes(10)
    scene.decide()
    assert (scene.last.reason, scene.last.shape.workers) == (SegmentReason.RETRY, 1)


def test_a_change_that_touches_only_phases_in_other_pods_ends_nothing(make_scene) -> None:
    own = [PHASES[0], PHASES[1], PHASES[2] | {"workers": {"count": 1, "microBatchSize": 4}}]
    teacher = {"from": "file:///models/teacher", "resize": "Rescale"}
    scene = make_scene(phases=own, teacher=teacher)
    scene.decide()
    scene.decide(scene.boundary(6))
    scene.decide()
    assert scene.last.shape.workers == 1
    scene.change(workers=WORKERS | {"count": 4, "microBatchSize": 2})
    scene.decide(scene.says(7, 6))
    assert scene.last.ending is None, "this phase has workers of its own"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"checkpoint": {"uri": "file:///runs", "everySteps": 7}}, {"every_steps": 7}),
        ({"checkpoint": {"uri": "file:///runs", "everySteps": 2, "keep": 9}}, {"keep": 9}),
        ({"health": {"nonFinite": {"skipSteps": 9}}}, {"skip_steps": 9}),
    ],
)
def test_a_live_change_is_told_once_and_ends_nothing(scene, spec, words) -> None:
    scene.decide()
    scene.decide(scene.says(3, 2))
    scene.change(**spec)
    decision = scene.decide(scene.says(3, 2))
    assert (decision.tell.job, decision.tell.pod) == ("small-0", "pod-0")
    assert decision.tell.words == scene.told.model_copy(update=words)
    scene.told = decision.tell.words
    assert scene.decide(scene.says(3, 2)).tell is None
    assert scene.last.ending is None


def test_what_is_live_and_not_the_pods_is_not_told(scene) -> None:
    scene.decide()
    scene.change(retries=0, health={"stallSeconds": 20})
    assert scene.decide(scene.says(3)).tell is None
    scene.passes(21)
    scene.decide(scene.says(3))
    assert scene.last.ending.reason == "NoStep", "the new limit holds at once"


def test_a_suspended_run_waits_for_no_retry_and_goes_on_with_it(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 2)))
    assert scene.status.retry_at is not None
    decision = scene.decide(stop=True)
    assert (decision.ensure, decision.wake_after) == (None, None)
    assert (scene.status.phase, scene.status.retry_at) == (RunPhase.SUSPENDED, None)
    assert scene.condition("Running").reason == "Suspended"
    assert scene.decide().ensure == "small-1"
    assert (scene.last.reason, scene.last.first_step) == (SegmentReason.RETRY, 2)
    assert (scene.status.phase, scene.status.attempts) == (RunPhase.RUNNING, 1)


def test_a_run_that_is_suspended_before_it_begins_makes_nothing(scene) -> None:
    assert scene.decide(stop=True).ensure is None
    assert (scene.status.phase, scene.status.segments) == (RunPhase.SUSPENDED, ())
    scene.decide()
    assert scene.last.reason is SegmentReason.START


def test_one_that_is_to_go_on_before_its_pods_had_ended_goes_on_when_they_have(scene) -> None:
    scene.decide()
    scene.decide(scene.says(3, 2), stop=True)
    asked = scene.decide(scene.says(3, 2))
    assert asked.tell.words.stop, "they were asked, and some may have heard it"
    scene.decide(scene.failed(scene.ended(ExitCode.PREEMPTED, 3)))
    assert scene.decide().ensure == "small-1"
    assert (scene.last.reason, scene.last.first_step) == (SegmentReason.RESUMED, 3)
    assert (scene.status.phase, scene.status.attempts) == (RunPhase.RUNNING, 0)


def test_a_suspended_run_that_was_done_meanwhile_is_done(scene) -> None:
    scene.decide()
    scene.decide(scene.says(9), stop=True)
    scene.decide(scene.succeeded(scene.ended(0, 10)), stop=True)
    assert scene.status.phase is RunPhase.SUCCEEDED


def test_pods_that_do_not_hear_are_removed_after_a_minute(scene) -> None:
    scene.decide()
    scene.decide(scene.says(3, 2), stop=True)
    told = scene.told.model_copy(update={"stop": True})
    deaf = replace(scene.says(3, 2), pods=(replace(scene.says(3).pods[0], told=told),))
    assert scene.decide(deaf, stop=True).delete == ()
    scene.passes(60)
    assert scene.decide(deaf, stop=True).delete == ("small-0",)


def test_a_template_that_was_refused_is_made_again_when_it_was_mended(scene) -> None:
    refused = child_refused(
        Observation(scene.document, BitNetRunStatus()), 'unknown field "imagee"', scene.now
    )
    scene.status = refused.status
    assert scene.decide().ensure is None
    assert scene.status.phase is RunPhase.FAILED
    scene.change(workers=WORKERS | {"template": TEMPLATE})
    assert scene.decide().ensure == "small-0"
    assert scene.status.phase is RunPhase.RUNNING
    assert scene.condition("Failed") is None
    assert scene.condition("Accepted").status == "True"


def wrong(scene: Any, **spec: Any) -> Decision:
    """A person writes these fields, which cannot be carried out."""
    scene.document["spec"] = DOCUMENT["spec"] | spec
    scene.document["metadata"]["generation"] += 1
    with pytest.raises(InvalidRun) as invalid:
        parse_run(scene.document)
    decision = reject(Observation(scene.document, scene.status), invalid.value, scene.now)
    scene.status = decision.status
    return decision


def refused(scene: Any, words: str) -> Decision:
    """The API server refuses the child, with these words."""
    decision = child_refused(Observation(scene.document, scene.status), words, scene.now)
    scene.status = decision.status
    return decision


def test_another_mistake_is_told_in_place_of_the_first_and_once(scene) -> None:
    wrong(scene, seed=-1)
    scene.passes(60)
    decision = wrong(scene, retries=-5)
    assert [event.reason for event in decision.events] == ["InvalidSpec"]
    assert "retries" in decision.events[0].message
    for type_ in ("Accepted", "Running", "Failed"):
        said = scene.condition(type_)
        assert "retries" in said.message
        assert "seed" not in said.message
        assert said.observed_generation == scene.status.observed_generation == 3
        assert said.last_transition_time == timestamp(START), "it stands as it did"
    with pytest.raises(InvalidRun) as invalid:
        parse_run(scene.document)
    again = reject(Observation(scene.document, scene.status), invalid.value, scene.now + timedelta(days=1))
    assert (again.status, again.events) == (scene.status, ())


def test_another_refused_template_is_told_and_not_asked_about_again(scene) -> None:
    refused(scene, 'unknown field "foo"')
    scene.change(workers=WORKERS | {"template": TEMPLATE})
    decision = refused(scene, 'unknown field "bar"')
    assert [(event.reason, event.message) for event in decision.events] == [
        ("ChildRefused", 'unknown field "bar"')
    ]
    said = scene.condition("Failed")
    assert (said.message, said.observed_generation) == ('unknown field "bar"', 2)
    assert scene.decide().ensure is None
    assert scene.decide().status == scene.status


def test_a_refused_template_of_a_run_that_was_mended_is_no_invalid_spec(scene) -> None:
    wrong(scene, seed=-1)
    scene.change(seed=0)
    refused(scene, "no such field")
    assert (scene.status.phase, scene.condition("Failed").reason) == (RunPhase.FAILED, "ChildRefused")
    assert scene.condition("Accepted") is None, "its words are in order"


def test_a_template_that_is_refused_in_mid_run_loses_nothing_that_was_trained(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.CRASHED, 4)))
    refused = child_refused(Observation(scene.document, scene.status), "no such field", scene.now)
    scene.status = refused.status
    scene.change(workers=WORKERS | {"template": TEMPLATE})
    assert scene.decide().ensure == "small-1"
    assert scene.last.first_step == 4


def test_a_run_that_failed_for_another_reason_stays_so_whatever_is_changed(scene) -> None:
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.TEACHER_UNAVAILABLE)))
    scene.change(workers=WORKERS | {"template": TEMPLATE})
    assert scene.decide().ensure is None
    assert scene.status.phase is RunPhase.FAILED


@pytest.mark.parametrize("code", [0, ExitCode.TEACHER_UNAVAILABLE])
def test_a_job_that_turns_up_after_the_end_is_removed(scene, code: int) -> None:
    scene.decide()
    ended = scene.ended(code, 10)
    scene.decide(scene.succeeded(ended) if code == 0 else scene.failed(ended))
    assert scene.status.phase.ended
    stray = Job("small-1", JobState.ACTIVE)
    decision = scene.decide(stray)
    assert (decision.delete, decision.ensure) == (("small-1",), None)
    assert scene.decide(replace(stray, state=JobState.ENDING)).delete == ()


def test_a_job_of_none_of_its_segments_is_removed_beside_the_one_that_trains(scene) -> None:
    scene.decide()
    assert scene.decide(scene.says(3), Job("small-7", JobState.ACTIVE)).delete == ("small-7",)


def test_pods_that_ended_as_asked_are_not_removed_before_their_job_has_seen_it(scene) -> None:
    """Their words tell of the checkpoint, and would go with it."""
    scene.decide()
    scene.decide(scene.active(step=3), stop=True)
    scene.decide(scene.active(step=3), stop=True)
    ended = replace(scene.active(), pods=(scene.ended(ExitCode.PREEMPTED, 3),))
    assert scene.decide(ended, stop=True).delete == ()
    scene.passes(61)
    assert scene.decide(ended, stop=True).delete == ("small-0",), "a controller that never sees it"
