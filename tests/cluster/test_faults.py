"""What befalls a run, each once on the real cluster: what it did, how long it stood still, what it lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_cluster import Kubectl
from runs import Document, WatchedRun, said_of
from step_watch import steps_of

pytestmark = pytest.mark.cluster

CROSS_ENTROPY = {"crossEntropy": {"weight": 1}}
DISTILLED = {"crossEntropy": {"weight": 0.5}, "teacherLogits": {"weight": 0.5, "temperature": 2}}


def test_other_pods_for_the_teacher_and_back_lose_and_repeat_no_step(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    """Rescale 1 -> 2 -> 1 workers: the loss of each step is that of a run whose pods stay."""

    def phases(**teachers: Any) -> list[Document]:
        return [
            {"name": "main", "until": "40%", "objectives": CROSS_ENTROPY},
            {"name": "distill", "until": "70%", "objectives": DISTILLED, **teachers},
            {"name": "last", "until": "100%", "objectives": CROSS_ENTROPY},
        ]

    model = "file:///data/tiny"
    staying = start("staying", steps=20, phases=phases(), workers={"count": 1})
    with watched(staying) as alone:
        staying.succeeded()
    run = start(
        "rescaled",
        steps=20,
        phases=phases(workers={"count": 2}),
        teacher={"from": model, "resize": "Rescale"},
        workers={"count": 1},
    )
    with watched(run) as steps:
        status = run.succeeded()
    assert said_of(status["segments"]) == [
        ("Start", "Completed"),
        ("TeacherPhase", "Completed"),
        ("TeacherPhase", "Completed"),
    ]
    assert [segment["shape"]["workers"] for segment in status["segments"]] == [1, 2, 1]
    assert [segment["firstStep"] for segment in status["segments"]] == [0, 8, 14]
    assert [segment["lastStep"] for segment in status["segments"]] == [8, 14, 20]
    assert len({segment["job"] for segment in status["segments"]}) == 3
    ours, theirs = steps_of(steps.file), steps_of(alone.file)
    assert [step["step"] for step in ours] == list(range(1, 21))
    assert steps.repeated == 0
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in theirs], rel=1e-3)


def test_losses_that_are_not_finite_are_rolled_back_and_their_batches_passed_over(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    run = start(
        "nan",
        steps=25,
        backend="Job",
        every_steps=5,
        workers={"count": 1},
        health={"nonFinite": {"skipSteps": 1, "learningRateFactor": 0.5}},
        schedule={"decayFraction": 0},
        faults={"NOT_FINITE": "12,13"},
    )
    with watched(run) as steps:
        status = run.succeeded()
    first, second = status["segments"][:2]
    assert (first["outcome"], first["exitReason"], second["reason"]) == ("Failed", "NonFinite", "Rollback")
    assert second["firstStep"] == 10
    assert status["adjustments"]["rollbacks"] == [
        {"checkpointStep": 10, "firstBatch": 12, "batches": 2, "learningRateFactor": 0.5}
    ]
    assert (status["step"], status["attempts"]) == (25, 0)
    lines = steps_of(steps.file)
    assert [step["step"] for step in lines] == list(range(1, 26))
    assert all(step["loss"] is not None for step in lines)
    before, after = lines[9]["learningRate"], lines[10]["learningRate"]
    assert after == pytest.approx(before / 2)


@pytest.mark.thorough
def test_a_micro_batch_that_does_not_fit_is_halved_until_it_does(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    run = start(
        "oom",
        steps=20,
        every_steps=4,
        workers={"count": 1, "microBatchSize": 4},
        teacher={"from": "file:///data/tiny", "batchSizeFactor": 1},
        faults={"FITTING": "1"},
    )
    with watched(run):
        status = run.succeeded()
    assert status["adjustments"]["halvings"] == {"distill": 2}
    last = status["segments"][-1]
    assert (last["shape"]["microBatchSize"], last["shape"]["accumulation"]) == (1, 4)
    assert [said["reason"] for said in status["segments"]].count("OutOfMemory") == 2
    assert status["attempts"] == 0


@pytest.mark.thorough
def test_a_loss_that_stopped_falling_ends_training_and_the_model_is_exported(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any], data: Path
) -> None:
    window = 20
    run = start(
        "flat",
        steps=400,
        workers={"count": 1},
        quantization={"lambdaWarmup": {"steps": 10}},
        optimizer={"adamLearningRate": 1e-9},
        health={"plateau": {"windowTokens": window * 64, "minImprovement": "5%", "action": "Stop"}},
    )
    with watched(run):
        status = run.succeeded()
    assert said_of(status["segments"]) == [("Start", "Ended"), ("LossPlateau", "Completed")]
    ended = status["adjustments"]["endStep"]
    assert (status["step"], status["totalSteps"]) == (ended, ended)
    assert window <= ended < 240, "in the phase `main`"
    (plateau,) = [each for each in status["conditions"] if each["type"] == "LossPlateau"]
    assert plateau["status"] == "True"
    assert "perplexityAfter" in status["evaluation"]
    exported = data / Path(status["artifacts"]["HuggingFace"].removeprefix("file://")).relative_to("/data")
    assert (exported / "config.json").is_file()


def test_a_drained_node_costs_no_attempt_and_no_step(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any], kubectl: Kubectl
) -> None:
    run = start("drained", steps=2000)
    with watched(run) as steps:
        run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        (node,) = (item["metadata"]["name"] for item in kubectl.get("nodes")["items"])
        selector = "--pod-selector=bitnet.training/run=drained"
        try:
            kubectl("drain", node, selector, "--force", "--delete-emptydir-data", timeout=120)
        finally:
            kubectl("uncordon", node)
        status = run.goes_on()
    first, second = status["segments"]
    assert (first["outcome"], second["reason"], status["attempts"]) == ("Preempted", "Preempted", 0)
    assert second["firstStep"] >= first["lastStep"]
    assert steps.repeated == 0


@pytest.mark.parametrize("backend", ["PyTorchJob", pytest.param("Job", marks=pytest.mark.thorough)])
def test_a_suspended_run_gives_its_machines_back_and_goes_on_where_it_was(
    start: Callable[..., WatchedRun],
    watched: Callable[[WatchedRun], Any],
    kubectl: Kubectl,
    namespace: str,
    backend: str,
) -> None:
    run = start("paused", steps=2000, backend=backend, workers={"count": 1})
    with watched(run) as steps:
        run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        run.change(suspend=True)
        run.wait_until(lambda status: status["phase"] == "Suspended", "suspension")
        phases = {pod["status"]["phase"] for pod in kubectl.get("pods", "-n", namespace)["items"]}
        assert phases <= {"Succeeded", "Failed"}, "no machine is held"
        run.change(suspend=False)
        status = run.goes_on()
    first, second = status["segments"]
    assert (first["outcome"], second["reason"], status["attempts"]) == ("Suspended", "Resumed", 0)
    assert first["ending"]["reason"] == "Suspended"
    assert second["firstStep"] == first["lastStep"]
    assert steps.repeated == 0


def test_what_may_change_changes_in_the_pods_that_train_or_in_others(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    run = start("changed", steps=2000, every_steps=1000)
    with watched(run) as steps:
        run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        run.change(checkpoint={"everySteps": 7})
        status = run.wait_until(lambda status: status.get("checkpointStep", 0) > 0, "a checkpoint")
        assert status["checkpointStep"] % 7 == 0
        assert len(status["segments"]) == 1
        run.change(workers={"count": 1})
        status = run.goes_on()
    first, second = status["segments"]
    assert (first["outcome"], second["reason"]) == ("Ended", "SpecChange")
    assert (first["shape"]["workers"], second["shape"]["workers"]) == (2, 1)
    assert second["firstStep"] == first["lastStep"]
    assert steps.repeated == 0


def test_pods_that_cannot_come_up_fail_the_run_with_the_kubelets_words(
    start: Callable[..., WatchedRun],
) -> None:
    """Where trying again cannot help; the machines are given back."""
    image = {"spec": {"containers": [{"name": "pytorch", "image": "nowhere.example/none:1"}]}}
    run = start("imageless", steps=10, phases=_in_pods_of(image), health={"stallSeconds": 10})
    status = run.failed()
    (failed,) = [each for each in status["conditions"] if each["type"] == "Failed"]
    assert failed["reason"] == "ErrImageNeverPull"
    assert len(status["segments"]) == 1


def test_a_run_that_waits_for_machines_says_so_and_waits_on(start: Callable[..., WatchedRun]) -> None:
    nowhere = {"spec": {"nodeSelector": {"bitnet.training/no-such": "node"}}}
    run = start("waiting", steps=10, phases=_in_pods_of(nowhere), health={"stallSeconds": 10})

    def stalled(status: Document) -> bool:
        conditions = {each["type"]: each for each in status.get("conditions", [])}
        return "Stalled" in conditions and conditions["Stalled"]["reason"] == "Unschedulable"

    status = run.wait_until(stalled, "the condition Stalled")
    assert status["phase"] == "Running"
    assert len(status["segments"]) == 1


def _in_pods_of(template: Document) -> list[Document]:
    """One phase whose pods have this beside what all pods of the run have."""
    return [{"name": "all", "until": "100%", "objectives": DISTILLED, "workers": {"template": template}}]
