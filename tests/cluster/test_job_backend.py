"""Runs in Indexed Jobs, on a cluster that knows no PyTorchJob until the last test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local_cluster import Kubectl
from local_cluster.programs import PYTORCHJOB_CRD, TRAINING_OPERATOR
from operator_under_test import OperatorProcess
from runs import Document, WatchedRun, said_of

pytestmark = pytest.mark.cluster

DEFINITION = "crd/pytorchjobs.kubeflow.org"


def install_pytorchjob(kubectl: Kubectl) -> None:
    """The cluster knows PyTorchJobs afterwards, and their operator finds them by itself."""
    file = TRAINING_OPERATOR.folder() / Path(PYTORCHJOB_CRD.path).name
    kubectl("apply", "--server-side", "--filename", str(file))
    kubectl("wait", "--for=create", DEFINITION, "--timeout=60s")
    kubectl("wait", "--for=jsonpath={.status.acceptedNames.kind}=PyTorchJob", DEFINITION, "--timeout=60s")


@pytest.fixture(scope="module", autouse=True)
def without_kubeflow(kubectl: Kubectl, operator: OperatorProcess) -> Iterator[None]:
    """The operator, started anew on a cluster that knows no PyTorchJob."""
    operator.stop()
    kubectl("delete", DEFINITION, "--wait=true", timeout=120)
    operator.start()
    yield
    install_pytorchjob(kubectl)


@pytest.fixture
def start_job(start: Callable[..., WatchedRun]) -> Callable[..., WatchedRun]:
    """Applies a run of two workers in Indexed Jobs, such as `start_job("killed", steps=60)`."""

    def apply(name: str, **changes: object) -> WatchedRun:
        return start(name, backend="Job", **changes)

    return apply


@pytest.mark.thorough
def test_two_workers_train_through_the_teacher_phase_to_the_end(
    start_job: Callable[..., WatchedRun], operator: OperatorProcess, data: Path
) -> None:
    status = start_job("alone", steps=20).succeeded()
    assert said_of(status["segments"]) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    assert (status["step"], status["segments"][-1]["shape"]["workers"]) == (20, 2)
    exported = data / Path(status["artifacts"]["HuggingFace"].removeprefix("file://")).relative_to("/data")
    assert (exported / "config.json").is_file()
    # That a kind is missing is said where kopf looks for kinds, not again and again.
    about = [line for line in operator.log().splitlines() if "pytorchjobs" in line]
    assert 1 <= len(about) <= 5, about


@pytest.mark.thorough
def test_a_rank_killed_with_sigkill_is_retried_from_the_checkpoint(
    start_job: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any]
) -> None:
    run = start_job("killed", steps=2000, every_steps=5)
    with watched(run):
        failed = run.retried_after_sigkill()
    assert "rank 1 was killed by signal 9 (SIGKILL)" in failed["message"]


def test_an_evicted_pod_costs_no_attempt(
    start_job: Callable[..., WatchedRun],
    watched: Callable[[WatchedRun], Any],
    kubectl: Kubectl,
    namespace: str,
) -> None:
    """As a drain does it. The pod is removed with its words; that it was evicted, the Job itself says."""
    run = start_job("drained", steps=2000)
    with watched(run) as steps:
        run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        pod = run.pod(1)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))
        status = run.goes_on()
    first, second = status["segments"][0], status["segments"][-1]
    assert (first["outcome"], second["reason"], status["attempts"]) == ("Preempted", "Preempted", 0)
    # The ranks wrote a checkpoint when they were asked to stop: nothing is trained twice.
    assert second["firstStep"] == first["lastStep"]
    assert steps.repeated == 0


@pytest.mark.thorough
def test_a_run_whose_kind_is_missing_waits_until_it_is_installed(
    start: Callable[..., WatchedRun], kubectl: Kubectl
) -> None:
    def why(status: Document) -> tuple[str, str]:
        found = [each for each in status.get("conditions", []) if each["type"] == "Running"]
        return (found[0]["reason"], found[0]["message"]) if found else ("", "")

    run = start("early", steps=10, workers={"count": 1})
    status = run.wait_until(lambda status: why(status)[0] == "KindMissing", "the condition")
    assert "no pytorchjobs.kubeflow.org: install Kubeflow's training operator" in why(status)[1]
    assert not status.get("segments")
    install_pytorchjob(kubectl)
    run.wait_until(lambda status: bool(status.get("segments")), "the first segment")
    assert run.jobs() == ["early-0"]
    run.wait_until(lambda status: status.get("step", 0) >= 1, "first step")
