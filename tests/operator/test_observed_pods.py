"""What is read of a pod: why it ended, where its training container does not tell, and what it waits for."""

from typing import Any

import pytest

from bitnet_crds.status import RunPhase
from bitnet_operator.backends import job as job_backend
from bitnet_operator.backends import pytorchjob
from bitnet_operator.backends.backend import Backend
from bitnet_operator.observation import Job
from bitnet_operator.observe import observed_job
from bitnet_operator.policies import stall
from bitnet_operator.policies.failure import first_cause
from bitnet_operator.policies.stall import HOPELESS
from small_run import START

Manifest = dict[str, Any]
INITIALIZING = {"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}


def pod(phase: str = "Failed", **status: Any) -> Manifest:
    return {
        "metadata": {
            "name": "small-0-0-abcde",
            "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
            "labels": {"training.kubeflow.org/replica-type": "master"},
        },
        "spec": {"containers": [{"name": "pytorch"}]},
        "status": {"phase": phase, **status},
    }


def ended(name: str, code: int, **words: str) -> Manifest:
    return {"name": name, "state": {"terminated": {"exitCode": code, **words}}}


async def seen(backend: Backend, *pods: Manifest, over: bool = True, name: str = "small-0") -> Job:
    """The job, which has failed with these pods, or waits for them."""
    why = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "1 pod failed"}
    manifest = {
        "metadata": {"name": name},
        "spec": {"runPolicy": {}, "completions": 2},
        "status": {"conditions": [why] if over else []},
    }
    return await observed_job(None, backend, manifest, list(pods))


each_backend = pytest.mark.parametrize("backend", [pytorchjob, job_backend], ids=["PyTorchJob", "Job"])


@each_backend
@pytest.mark.parametrize(
    ("status", "reason", "preempted", "words"),
    [
        pytest.param(
            {
                "initContainerStatuses": [ended("fetch", 1, reason="Error", message="no space left")],
                "containerStatuses": [INITIALIZING],
            },
            "Crashed",
            False,
            "container fetch ended with exit code 1: no space left",
            id="an init container",
        ),
        pytest.param(
            {"initContainerStatuses": [ended("fetch", 7, reason="Error")]},
            "Crashed",
            False,
            "container fetch ended with exit code 7: Error",
            id="with a code that means something of a trainer",
        ),
        pytest.param(
            {"initContainerStatuses": [ended("fetch", 137, reason="OOMKilled")]},
            "Killed",
            False,
            "container fetch ended with exit code 137: OOMKilled",
            id="that was killed",
        ),
        pytest.param(
            {"initContainerStatuses": [ended("fetch", 143)]},
            "Preempted",
            True,
            "container fetch ended with exit code 143",
            id="that was asked to end",
        ),
        pytest.param(
            {"initContainerStatuses": [ended("proxy", 143), ended("fetch", 1, message="not found")]},
            "Crashed",
            False,
            "container fetch ended with exit code 1: not found",
            id="beside one that ended with it",
        ),
        pytest.param(
            {"initContainerStatuses": [ended("proxy", 143), ended("fetch", 137, reason="OOMKilled")]},
            "Killed",
            False,
            "container fetch ended with exit code 137: OOMKilled",
            id="that was killed beside one that ended with it",
        ),
        pytest.param(
            {"containerStatuses": [ended("pytorch", 0), ended("sidecar", 1, message="no route")]},
            "Crashed",
            False,
            "container sidecar ended with exit code 1: no route",
            id="a sidecar",
        ),
        pytest.param(
            {"containerStatuses": [ended("sidecar", 1), ended("pytorch", 137, reason="OOMKilled")]},
            "Killed",
            False,
            "OOMKilled",
            id="the training container comes before it",
        ),
        pytest.param(
            {"reason": "UnexpectedAdmissionError", "message": "no healthy devices present"},
            "PodFailed",
            False,
            "UnexpectedAdmissionError: no healthy devices present",
            id="a kubelet that would not have it",
        ),
        pytest.param(
            {
                "reason": "Evicted",
                "message": "it used too much",
                "containerStatuses": [ended("pytorch", 137, reason="Error")],
            },
            "Killed",
            False,
            "Evicted: it used too much",
            id="a limit of its own",
        ),
    ],
)
async def test_a_pod_that_failed_before_or_beside_its_trainer_is_no_preemption_and_says_why(
    backend: Backend, status: Manifest, reason: str, preempted: bool, words: str
) -> None:
    failure = first_cause(await seen(backend, pod(**status)))
    assert (failure.reason, failure.preempted) == (reason, preempted)
    assert failure.message == f"small-0-0-abcde: {words}"
    assert failure.retryable


async def test_what_the_trainer_reported_stays_where_another_container_failed() -> None:
    report = '{"exitCode": 0, "reason": "Succeeded", "step": 10}'
    sidecar = ended("sidecar", 1, message="no route")
    job = await seen(pytorchjob, pod(containerStatuses=[ended("pytorch", 0, message=report), sidecar]))
    (observed,) = job.pods
    assert observed.report is not None
    assert observed.report.step == 10
    assert "no route" in first_cause(job).message


async def test_a_container_that_begins_again_has_not_failed_its_pod() -> None:
    running = {"name": "pytorch", "state": {"running": {}}}
    status = {"initContainerStatuses": [ended("proxy", 1)], "containerStatuses": [running]}
    (observed,) = (await seen(pytorchjob, pod("Running", **status), over=False)).pods
    assert (observed.running, observed.exit_code, observed.failed) == (True, None, False)


@each_backend
@pytest.mark.parametrize("reason", sorted(HOPELESS))
async def test_an_init_container_that_can_never_be_made_is_hopeless_too(
    backend: Backend, reason: str
) -> None:
    waits = {"name": "fetch", "state": {"waiting": {"reason": reason, "message": "BAD::x"}}}
    later = {"name": "unpack", "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {"initContainerStatuses": [waits, later], "containerStatuses": [INITIALIZING]}
    job = await seen(backend, pod("Pending", **status), over=False)
    (observed,) = job.pods
    assert observed.waiting == f"{reason}: container fetch: BAD::x"
    stalled = stall.judge(job, None, START, START.replace(year=2027), 600)
    assert stalled is not None
    assert (stalled.reason, stalled.helps) == (reason, False)


@each_backend
async def test_an_init_container_that_always_fails_ends_the_run_at_its_limit(
    scene: Any, backend: Backend
) -> None:
    status = {"initContainerStatuses": [ended("fetch", 1, message="no such file")]}
    for _ in range(3):
        scene.decide()
        scene.decide(await seen(backend, pod(**status), name=scene.last.job))
        scene.passes(300)
    assert (scene.status.phase, scene.status.attempts) == (RunPhase.FAILED, 3)
    assert "no such file" in scene.condition("Failed").message
