"""observe: reads the cluster into an Observation. Decides nothing."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import ValidationError

from bitnet_crds import BitNetRunStatus, ExitCode, TerminationReport
from bitnet_crds.protocol import TOLD_ANNOTATION, Told
from bitnet_operator.api import PODS, RUNS, Api, ApiError, Resource, is_owned
from bitnet_operator.backends import job as job_backend
from bitnet_operator.backends.backend import Backend
from bitnet_operator.backends.kinds import backend_of
from bitnet_operator.desired import CONTAINER, PODS_ANNOTATION, RUN_LABEL
from bitnet_operator.observation import Job, JobState, Key, Observation, Pod
from bitnet_operator.progress import ask
from bitnet_operator.removal import FINALIZER
from bitnet_operator.segments import removal_job

_STOPPED = {int(ExitCode.KILLED): 1, int(ExitCode.PREEMPTED): 2}
"""Exit codes that mean the same of any container; the higher, the more likely another one is the cause."""


async def observe(
    api: Api, http: aiohttp.ClientSession, key: Key, watched_since: datetime | None = None
) -> Observation | None:
    """The run, its jobs, their pods and what rank 0 says; None where the run is gone, or being deleted with
    nothing to be removed first."""
    try:
        document = await api.get(RUNS.path(*key))
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise
    deleting = _is_going(document)
    if deleting and FINALIZER not in document["metadata"].get("finalizers", []):
        return None
    selector = f"{RUN_LABEL}={key.name}"
    # Jobs first: one has failed because a pod has, so the pods that are read after it show which and why.
    backend = backend_of(document)
    jobs = await _list(api, backend.RESOURCE, key.namespace, selector)
    pods = await _list(api, PODS, key.namespace, selector)
    own = [job for job in jobs if is_owned(job, document["metadata"]["uid"])]
    observed = [
        await observed_job(http, backend, job, [pod for pod in pods if is_owned(pod, job["metadata"]["uid"])])
        for job in own
    ]
    removal = await _removal(api, key) if deleting else None
    owners = own if removal is None else [*own, removal]
    left_over = [
        pod["metadata"]["name"]
        for pod in pods
        if not any(is_owned(pod, job["metadata"]["uid"]) for job in owners) and _holds_machine(pod)
    ]
    return Observation(
        document=document,
        status=BitNetRunStatus.model_validate(document.get("status") or {}),
        jobs=tuple(observed),
        stop_requested=document.get("spec", {}).get("suspend") is True,
        left_over=tuple(sorted(left_over)),
        gpus=sum(_gpus(pod) for pod in pods if _holds_machine(pod)),
        watched_since=watched_since,
        deleting=deleting,
        removal=None
        if removal is None
        else await observed_job(
            None, job_backend, removal, [pod for pod in pods if is_owned(pod, removal["metadata"]["uid"])]
        ),
    )


async def _removal(api: Api, key: Key) -> dict[str, Any] | None:
    """The job that removes what a deleted run keeps, of this run or of an earlier one of its name."""
    try:
        return await api.get(job_backend.RESOURCE.path(key.namespace, removal_job(key.name)))
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return None


def _is_going(manifest: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" in manifest["metadata"]


async def _list(api: Api, kind: Resource, namespace: str, selector: str) -> list[dict[str, Any]]:
    """The objects of a kind; none where the cluster has no such kind, which `apply` then says."""
    try:
        found = await api.get(kind.path(namespace), labelSelector=selector)
    except ApiError as error:
        if not error.is_missing_kind:
            raise
        return []
    return list(found["items"])


async def observed_job(
    http: aiohttp.ClientSession | None, backend: Backend, job: Mapping[str, Any], pods: list[dict[str, Any]]
) -> Job:
    """A job and its pods; without `http` nobody is asked how far it is."""
    state, message = backend.state(job)
    if _is_going(job):
        state = JobState.ENDING
    progress = None
    if http is not None and state is JobState.ACTIVE:
        for pod in pods:
            address = pod["status"].get("podIP")
            if address and pod["status"].get("phase") == "Running" and backend.pod_rank(pod) == 0:
                progress = await ask(http, address)
    observed = {pod.name: pod for pod in backend.lost_pods(job)}
    # What a pod says itself is more than what is said of it.
    observed |= {pod["metadata"]["name"]: _pod(pod, backend.pod_rank(pod)) for pod in pods}
    by_rank = tuple(sorted(observed.values(), key=lambda pod: pod.rank))
    made_from = job["metadata"].get("annotations", {}).get(PODS_ANNOTATION)
    return Job(job["metadata"]["name"], state, message, by_rank, progress, made_from)


def _pod(pod: Mapping[str, Any], rank: int) -> Pod:
    status = pod["status"]
    state = next(
        (each.get("state", {}) for each in status.get("containerStatuses", []) if each["name"] == CONTAINER),
        dict[str, Any](),
    )
    terminated: Mapping[str, Any] = state.get("terminated", {})
    exit_code, message = terminated.get("exitCode"), terminated.get("message")
    report = _report(message)
    said = None if report else message or _failed(pod) or terminated.get("reason")
    if not exit_code and (beside := _failed_beside(pod)) is not None:
        exit_code, said = beside
    return Pod(
        name=pod["metadata"]["name"],
        rank=rank,
        running="running" in state,
        waiting=_waiting(pod, state),
        disruption=_disruption(pod),
        failed=status.get("phase") == "Failed",
        exit_code=exit_code,
        report=report,
        message=said,
        told=_told(pod),
    )


def _failed_beside(pod: Mapping[str, Any]) -> tuple[int, str] | None:
    """Of a pod that failed by another container than the one that trains: an exit code, and words. A code of
    the trainer's, such as NonFinite's, means something else there."""
    if pod["status"].get("phase") != "Failed":
        return None
    found = [
        (status["name"], ended)
        for kind in ("initContainerStatuses", "containerStatuses")
        for status in pod["status"].get(kind, [])
        if status["name"] != CONTAINER
        and (ended := status.get("state", {}).get("terminated", {})).get("exitCode")
    ]
    if not found:
        return None
    name, ended = min(found, key=lambda each: _STOPPED.get(each[1]["exitCode"], 0))
    code = ended["exitCode"]
    words = f"container {name} ended with exit code {code}"
    if said := ended.get("message") or _failed(pod) or ended.get("reason"):
        words += f": {said}"
    return code if code in _STOPPED else int(ExitCode.CRASHED), words


def _holds_machine(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has, or may still get, the node that it was given."""
    return "nodeName" in pod["spec"] and pod["status"].get("phase") not in ("Succeeded", "Failed")


def _gpus(pod: Mapping[str, Any]) -> int:
    limits = (container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"])
    return sum(int(each.get("nvidia.com/gpu", 0)) for each in limits)


def _told(pod: Mapping[str, Any]) -> Told | None:
    """What the pod was told; None where that is not to be read, so that it is told again."""
    try:
        return Told.model_validate_json(pod["metadata"].get("annotations", {}).get(TOLD_ANNOTATION, ""))
    except ValidationError:
        return None


def _failed(pod: Mapping[str, Any]) -> str | None:
    """Why the kubelet failed the pod itself, where it did: `Evicted: …`, `UnexpectedAdmissionError: …`."""
    return _sentence(pod["status"]) if pod["status"].get("phase") == "Failed" else None


def _report(message: str | None) -> TerminationReport | None:
    """The termination message as a report; None where a pod left other words, or none."""
    if message is None:
        return None
    try:
        return TerminationReport.model_validate_json(message)
    except ValidationError:
        return None


def _waiting(pod: Mapping[str, Any], state: Mapping[str, Any]) -> str | None:
    if "waiting" in state:
        return _before_it(pod) or _sentence(state["waiting"])
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _sentence(condition)
    return None


def _before_it(pod: Mapping[str, Any]) -> str | None:
    """Why an init container does not run, for which the others wait."""
    for status in pod["status"].get("initContainerStatuses", []):
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason", "PodInitializing") != "PodInitializing":
            message = ": ".join(filter(None, [f"container {status['name']}", waiting.get("message")]))
            return _sentence({"reason": waiting["reason"], "message": message})
    return None


def _disruption(pod: Mapping[str, Any]) -> str | None:
    """Kubernetes' own word that it stopped the pod through no fault of it: drained, preempted, its node lost
    or short of something. A pod evicted over a limit of its own has no such condition."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return _sentence(condition)
    return None


def _sentence(said: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (said.get("reason"), said.get("message")) if part)
