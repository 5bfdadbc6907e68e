"""What the operator does about a run's health: micro batches that were found, plateaus, stalls, queues, what
pods warn of."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bitnet_crds import ExitCode
from bitnet_crds.health import STRETCHES
from bitnet_crds.protocol import LossPoint
from bitnet_crds.status import RunPhase, SegmentOutcome, SegmentReason
from bitnet_operator.observation import Job, JobState, Pod
from small_run import DOCUMENT

# Micro batches that are found by trying.

AUTO = {"workers": {"count": 2, "gpusPerWorker": 1, "microBatchSize": "Auto"}}


def test_the_micro_batches_that_were_found_are_in_the_status_and_in_the_open_segment(
    make_scene: Callable[..., Any],
) -> None:
    scene = make_scene(**AUTO)
    scene.decide()
    assert (scene.last.end_step, scene.last.shape.micro_batch_size) == (10, 4), "the largest that may be"
    scene.decide(scene.says(0, state="Training"))
    found = {"warmup": 2, "main": 2, "distill": 1}
    scene.decide(scene.says(1, micro_batches=found))  # within the interval: it is written at once
    assert scene.status.adjustments.micro_batches == found
    last = scene.last
    assert (last.shape.micro_batch_size, last.shape.accumulation) == (2, 2)
    assert last.end_step == 6, "the teacher's phase has another shape, as is known now"
    assert [phase.auto for phase in scene.plan.phases] == [False] * 3
    scene.passes(15)
    scene.decide(scene.says(7, 6, micro_batches=found))
    assert (scene.last.reason, scene.last.first_step) == (SegmentReason.TEACHER_PHASE, 6)
    assert (scene.last.shape.micro_batch_size, scene.last.shape.accumulation) == (1, 4)


def test_what_was_found_is_taken_from_the_last_words_too(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(**AUTO)
    scene.decide()
    ended = scene.ended(ExitCode.OUT_OF_MEMORY, 2, step=3, micro_batches={"warmup": 2, "main": 2})
    scene.decide(scene.failed(ended))
    assert scene.last.shape.micro_batch_size == 2
    assert scene.status.adjustments.halvings == {"main": 1}
    scene.decide()
    assert scene.last.first_step == 2
    assert (scene.last.shape.micro_batch_size, scene.last.shape.accumulation) == (1, 4)


def test_halvings_from_before_it_was_found_only_bounded_the_search(make_scene: Callable[..., Any]) -> None:
    """The pods train with what they found, and say so; to halve that again would be another size."""
    scene = make_scene(**AUTO)
    scene.decide()
    scene.decide(scene.failed(scene.ended(ExitCode.OUT_OF_MEMORY, None, step=0)))
    assert scene.status.adjustments.halvings == {"warmup": 1}
    scene.decide()
    assert scene.last.shape.micro_batch_size == 2
    scene.decide(scene.says(1, micro_batches={"warmup": 2}))
    assert scene.status.adjustments.halvings == {}
    assert scene.plan.phases[0].shape.micro_batch_size == scene.last.shape.micro_batch_size == 2
    scene.decide(scene.failed(scene.ended(ExitCode.OUT_OF_MEMORY, None, step=1, micro_batches={"warmup": 2})))
    assert scene.status.adjustments.halvings == {"warmup": 1}
    assert scene.plan.phases[0].shape.micro_batch_size == 1


# Plateaus. 100 steps; phases end at 20, 60 and 100.


def plateau(action: str) -> dict[str, Any]:
    return {
        "budget": {"tokens": 16 * 8 * 100, "globalBatchSize": 8},
        "schedule": {"warmupSteps": 0, "decayFraction": 0.1},
        "health": {"plateau": {"windowTokens": 16 * 8 * STRETCHES, "action": action}},
    }


def flat(scene: Any, step: int, checkpoint: int | None = None, *, fall: float = 0.0) -> Job:
    curve = [
        LossPoint(step=step - STRETCHES + 1 + index, loss=3 - fall * index) for index in range(STRETCHES)
    ]
    return scene.says(step, checkpoint, loss_curve=curve)


@pytest.fixture
def stuck(make_scene: Callable[..., Any]) -> Callable[[str], Any]:
    def begun(action: str) -> Any:
        scene = make_scene(**plateau(action))
        scene.decide()
        return scene

    return begun


def test_an_alert_is_a_condition_that_says_since_when_and_turns(stuck: Callable[[str], Any]) -> None:
    scene = stuck("Alert")
    scene.decide(flat(scene, 54, fall=0.01))
    assert scene.condition("LossPlateau") is None
    for step in (55, 57):
        scene.passes(15)
        decision = scene.decide(flat(scene, step))
        assert decision.tell is None
        said = scene.condition("LossPlateau")
        assert (said.status, said.reason) == ("True", "LossPlateau")
        assert said.message.startswith("since step 23 the loss fell by")
    scene.passes(15)
    scene.decide(flat(scene, 58, fall=0.01))
    assert (scene.condition("LossPlateau").status, scene.condition("LossPlateau").reason) == (
        "False",
        "LossFalls",
    )
    assert scene.last.ending is None


@pytest.mark.parametrize(
    ("action", "reason", "first_step", "end_step", "phase_ends"),
    [
        pytest.param("Stop", SegmentReason.LOSS_PLATEAU, 56, 56, {}, id="Stop"),
        pytest.param("NextPhase", SegmentReason.LOSS_PLATEAU, 56, 100, {"main": 56}, id="NextPhase"),
    ],
)
def test_an_action_ends_the_phase_or_training_at_the_checkpoint(
    stuck: Callable[[str], Any],
    action: str,
    reason: SegmentReason,
    first_step: int,
    end_step: int,
    phase_ends: dict[str, int],
) -> None:
    scene = stuck(action)
    meant = scene.decide(flat(scene, 55))
    assert (meant.tell, meant.wake_after, scene.last.ending.reason) == (None, 0, "LossPlateau")
    assert [(event.type, event.reason) for event in meant.events] == [("Warning", "LossPlateau")]
    assert scene.decide(flat(scene, 55)).tell.words.stop
    scene.decide(scene.failed(scene.ended(ExitCode.PREEMPTED, 56)))
    ended = scene.last
    assert (ended.outcome, ended.last_step) == (SegmentOutcome.ENDED, 56)
    assert scene.status.attempts == 0
    assert scene.status.adjustments.phase_ends == phase_ends
    decision = scene.decide()
    last = scene.last
    assert (decision.ensure, last.reason) == ("small-1", reason)
    assert (last.first_step, last.end_step) == (first_step, end_step)
    assert last.shape == scene.plan.phase_at(56).shape
    scene.decide(scene.succeeded(scene.ended(0, end_step)))
    assert (scene.status.phase, scene.status.step) == (RunPhase.SUCCEEDED, end_step)
    assert scene.status.tokens == end_step * 16 * 8


def test_a_phase_that_was_over_before_the_pods_had_ended_is_not_cut_short(
    stuck: Callable[[str], Any],
) -> None:
    scene = stuck("NextPhase")
    scene.decide(flat(scene, 59))
    scene.decide(scene.failed(scene.ended(ExitCode.PREEMPTED, 60)))
    assert scene.status.adjustments.phase_ends == {}
    scene.decide()
    assert (scene.last.reason, scene.last.first_step, scene.last.end_step) == ("Retry", 60, 100)
    scene.decide(scene.says(61))
    assert scene.condition("LossPlateau").status == "False", "another phase is another loss"


@pytest.mark.parametrize("kept", [None, 20], ids=["no checkpoint", "none of this phase"])
def test_without_a_checkpoint_of_the_phase_nothing_is_cut_short(
    stuck: Callable[[str], Any], kept: int | None
) -> None:
    scene = stuck("Stop")
    scene.decide(flat(scene, 55, kept))
    scene.decide(scene.failed(scene.ended(ExitCode.KILLED, kept)))
    assert scene.status.adjustments.end_step is None
    scene.decide()
    assert (scene.last.reason, scene.last.first_step) == ("Retry", kept or 0)


def test_the_last_phase_has_no_next_one_and_an_alert_is_all(make_scene: Callable[..., Any]) -> None:
    spec = plateau("NextPhase") | {"schedule": {"warmupSteps": 0, "decayFraction": 0}}
    scene = make_scene(**spec)
    scene.decide()
    scene.decide(flat(scene, 95))
    assert scene.condition("LossPlateau").status == "True"
    assert scene.last.ending is None


def test_an_action_that_is_asked_for_while_the_loss_is_flat_is_taken(stuck: Callable[[str], Any]) -> None:
    scene = stuck("Alert")
    scene.decide(flat(scene, 55))
    scene.change(health=plateau("Stop")["health"])
    scene.decide(flat(scene, 56))
    assert scene.last.ending.reason == "LossPlateau"


# Stalls.


def waits(scene: Any, why: str, *, running: bool = False) -> Job:
    pods = (Pod("pod-0", 0, running=running, waiting=None if running else why), Pod("pod-1", 1, waiting=why))
    return Job(scene.last.job, JobState.ACTIVE, None, pods, None, scene.last.pods)


def test_a_stall_is_ended_and_tried_again(scene) -> None:
    scene.decide()
    scene.decide(scene.says(3, 2))
    scene.passes(601)
    meant = scene.decide(scene.says(3, 2))
    assert scene.last.ending.reason == "NoStep"
    assert (scene.condition("Stalled").status, meant.delete) == ("True", ())
    assert scene.decide(scene.says(3, 2)).tell.words.stop
    scene.passes(61)
    assert scene.decide(scene.says(3, 2)).delete == ("small-0",), "it did not end by itself"
    assert scene.decide(replace(scene.says(3), state=JobState.ENDING)).ensure is None
    scene.decide()
    ended = scene.last
    assert (ended.outcome, ended.exit_reason, ended.then) == (SegmentOutcome.FAILED, "NoStep", "Retry")
    assert scene.status.attempts == 1
    scene.passes(10)
    scene.decide()
    assert (scene.last.reason, scene.last.first_step) == (SegmentReason.RETRY, 2)
    scene.decide(scene.says(3, 2))
    assert scene.condition("Stalled").status == "False"


def test_a_step_within_the_limit_is_no_stall(scene) -> None:
    scene.decide()
    for step in range(1, 6):
        scene.passes(599)
        scene.decide(scene.says(step))
    assert scene.condition("Stalled") is None


def test_pods_without_machines_wait_for_ever_and_the_condition_says_so(scene) -> None:
    scene.decide()
    for _ in range(20):
        scene.passes(86_400)
        decision = scene.decide(waits(scene, "Unschedulable: 0/3 nodes have a GPU"))
        assert (decision.delete, scene.last.ending) == ((), None)
    assert scene.condition("Stalled").reason == "Unschedulable"
    assert scene.status.attempts == 0
    scene.decide(scene.says(0))
    assert scene.condition("Stalled").status == "False"


def test_a_stall_that_is_waited_out_is_written_once(scene) -> None:
    scene.decide()
    scene.passes(601)
    scene.decide(waits(scene, "Unschedulable: 0/3 nodes have a GPU"))
    written = scene.status
    for _ in range(20):
        scene.passes(15)
        assert scene.decide(waits(scene, "Unschedulable: 0/3 nodes have a GPU")).status == written


@pytest.mark.parametrize(
    ("why", "template", "phase"),
    [
        ("InvalidImageName: a b", None, RunPhase.FAILED),
        ("InvalidImageName: a b", {"spec": {"containers": []}}, RunPhase.RUNNING),
        ("ImagePullBackOff: no such tag", None, RunPhase.RUNNING),
    ],
)
def test_an_image_is_tried_again_where_it_may_come(scene, why: str, template: Any, phase: RunPhase) -> None:
    scene.decide()
    scene.passes(601)
    scene.decide(waits(scene, why))
    assert scene.decide(waits(scene, why)).delete == ("small-0",), "nobody is there to hear it"
    if template:
        scene.change(workers=DOCUMENT["spec"]["workers"] | {"template": template})
    scene.decide()
    assert (scene.status.phase, scene.status.attempts) == (phase, 1)
    assert why in scene.last.message


def test_pods_that_load_have_six_times_as_long(scene) -> None:
    scene.decide()
    scene.decide(scene.says(0, state="LoadingModel"))
    scene.passes(3600)
    scene.decide(scene.says(0, state="LoadingModel"))
    assert scene.last.ending is None
    scene.passes(1)
    scene.decide(scene.says(0, state="LoadingModel"))
    assert scene.last.ending.reason == "NoStep"


def test_text_that_becomes_tokens_is_a_sign_of_work(scene) -> None:
    """Hours of it; a process that makes no more of them is stalled as any."""
    scene.decide()
    for millions in (0, 1, 20, 30):
        said = scene.says(0, state="PreparingData", prepared_tokens=millions * 10**6)
        scene.decide(said)
        assert scene.last.ending is None
        assert scene.status.prepared_tokens == millions * 10**6
        scene.passes(3500)
    scene.passes(101)
    scene.decide(said)
    assert scene.last.ending.reason == "NoStep"


def test_what_nobody_could_see_is_no_stall(scene) -> None:
    scene.decide()
    scene.decide(scene.says(3))
    scene.passes(86_400)
    back = scene.now
    scene.decide(scene.says(3), watched_since=back)
    assert scene.last.ending is None
    scene.passes(601)
    scene.decide(scene.says(3), watched_since=back)
    assert scene.last.ending.reason == "NoStep"


# Queues.


def test_waiting_in_a_queue_is_no_stall_and_neither_is_coming_up_after_it(scene) -> None:
    scene.decide()
    queued = Job(scene.last.job, JobState.SUSPENDED, "no quota", (), None, scene.last.pods)
    for _ in range(3):
        scene.passes(86_400)
        scene.decide(queued)
    assert scene.condition("Running").reason == "Queued"
    assert "no quota" in scene.condition("Running").message
    scene.decide(waits(scene, "ContainerCreating"))
    scene.passes(599)
    scene.decide(waits(scene, "ContainerCreating"))
    assert scene.last.ending is None
    assert scene.condition("Running").reason == "WaitingForPods"
    scene.passes(2)
    scene.decide(waits(scene, "ContainerCreating"))
    assert scene.last.ending.reason == "ContainerCreating"


def test_a_change_of_a_queued_jobs_pods_makes_it_anew(scene) -> None:
    scene.decide()
    queued = Job(scene.last.job, JobState.SUSPENDED, "no quota", (), None, scene.last.pods)
    scene.change(workers=DOCUMENT["spec"]["workers"] | {"count": 1})
    scene.decide(queued)
    assert scene.decide(queued).delete == ("small-0",)
    scene.decide()
    assert scene.decide().ensure == "small-1"
    assert (scene.last.reason, scene.last.shape.workers) == (SegmentReason.SPEC_CHANGE, 1)


def test_an_operator_that_was_away_longer_than_a_limit_gives_pods_all_of_it_again(scene) -> None:
    scene.decide()
    scene.passes(3600)
    scene.decide(waits(scene, "ContainerCreating"), watched_since=scene.now - timedelta(seconds=599))
    assert scene.condition("Stalled") is None


# What pods warn of.


def test_checkpoints_that_fail_while_training_goes_on_are_a_condition_until_one_succeeds(scene: Any) -> None:
    scene.decide()
    scene.decide(scene.active(step=1))
    assert scene.condition("Checkpointing") is None
    words = "the disk is full. Training goes on"
    scene.decide(scene.says(3, checkpoint_error=words))
    said = scene.condition("Checkpointing")
    assert (said.status, said.reason, said.message) == ("False", "CheckpointFailed", words)
    scene.decide(scene.active(step=4, checkpoint=2))
    assert scene.condition("Checkpointing") == said, "a new pod says nothing of the next checkpoint"
    scene.decide(scene.says(5, 4, checkpoint_at=1.0))
    said = scene.condition("Checkpointing")
    assert (said.status, said.reason, said.message) == ("True", "Committed", "step 4 is kept")


def test_what_the_trainer_warns_of_is_a_condition_until_a_later_process_has_no_warning(scene: Any) -> None:
    scene.decide()
    scene.decide(scene.active(step=1))
    assert scene.condition("Warnings") is None
    scene.decide(scene.says(3, warnings=("no key. Put one there.", "No disk.")))
    said = scene.condition("Warnings")
    assert (said.status, said.reason) == ("True", "TrainerWarned")
    assert said.message == "no key. Put one there. No disk."
    scene.decide(scene.active(step=3))
    said = scene.condition("Warnings")
    assert (said.status, said.reason, said.message) == (
        "False",
        "NoWarnings",
        "the trainer warns of nothing",
    )
