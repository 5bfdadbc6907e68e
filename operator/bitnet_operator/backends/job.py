"""The Indexed Job backend (batch/v1), which needs nothing installed: the child, and how its state is read."""

import re
from collections.abc import Mapping
from typing import Any

from bitnet_crds import BitNetRun, ExitCode, Order, Shape
from bitnet_operator.api import SERVICES, Resource
from bitnet_operator.backends.backend import Manifest
from bitnet_operator.desired import CONTAINER, JOB_LABEL, child_metadata, job_metadata, pod_template
from bitnet_operator.observation import JobState, Pod
from bitnet_operator.pod_template import merge

RESOURCE = Resource("batch", "v1", "jobs")
BESIDE = (SERVICES,)
MISSING = "the cluster has no batch/v1 Jobs: it is no Kubernetes that this operator can work with"

RENDEZVOUS_PORT = 23456
"""Rank 0 listens there; the same as PyTorchJob's."""

_ASKED = int(ExitCode.PREEMPTED)
_INDEX = "batch.kubernetes.io/job-completion-index"
_DISRUPTED = re.compile(r"Pod \S+/(?P<pod>\S+) has condition DisruptionTarget ")
_EXITED = re.compile(r"Container \S+ for pod \S+/(?P<pod>\S+) failed with exit code (?P<code>\d+) ")


def manifests(run: BitNetRun, order: Order, trainer_image: str) -> tuple[tuple[Resource, Manifest], ...]:
    """The headless Service by which the pods find rank 0, and the Job."""
    return (SERVICES, _service(run, order.job)), (RESOURCE, _job(run, order, trainer_image))


def _service(run: BitNetRun, job: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(run, job, job),
        "spec": {
            "clusterIP": "None",
            # The ranks look for each other before any of them is ready for anything else.
            "publishNotReadyAddresses": True,
            "selector": {JOB_LABEL: job},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _job(run: BitNetRun, order: Order, trainer_image: str) -> Manifest:
    """The Job: one index a worker, of which index 0 holds rank 0 and, when it succeeds, ends the job well.

    The first pod that fails ends the job, and the others are removed; those that ended by themselves stay for
    their words. A pod that Kubernetes stopped is removed, words and all; so the podFailurePolicy has the job
    itself say that, and of any other pod the exit code. Under one, a pod counts as failed once it has ended,
    not when it is asked to: it may write its checkpoint first. Of a pod that ends because it was asked to
    (143) the policy says nothing: else a Job whose pods a queue takes would fail with the first that ended.
    """
    disrupted = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    exited = {
        "action": "FailJob",
        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0, _ASKED]},
    }
    return {
        "apiVersion": f"{RESOURCE.group}/{RESOURCE.version}",
        "kind": "Job",
        "metadata": job_metadata(run, order),
        "spec": {
            "completionMode": "Indexed",
            "completions": order.shape.workers,
            "parallelism": order.shape.workers,
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [disrupted, exited]},
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "template": merge(pod_template(run, order, trainer_image), _placement(order.job, order.shape)),
        },
    }


def _placement(job: str, shape: Shape) -> Manifest:
    """What of the pods is the job's alone to say: which of them finds which, and that none begins anew."""
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}
    env: list[Manifest] = [
        {"name": "PET_NNODES", "value": str(shape.workers)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        {"name": "PET_NPROC_PER_NODE", "value": str(shape.processes_per_worker)},
        {"name": "PET_MASTER_ADDR", "value": f"{job}-0.{job}"},
        {"name": "PET_MASTER_PORT", "value": str(RENDEZVOUS_PORT)},
    ]
    return {
        "spec": {
            "restartPolicy": "Never",
            "subdomain": job,
            "containers": [{"name": CONTAINER, "env": env}],
        }
    }


def state(job: Mapping[str, Any]) -> tuple[JobState, str | None]:
    """Where a Job stands, and what its controller says of it. It has failed, or completed, once none of its
    pods runs any more."""
    conditions = _true_conditions(job)
    for type_, state in (("Complete", JobState.SUCCEEDED), ("Failed", JobState.FAILED)):
        if type_ in conditions:
            return state, conditions[type_].get("message")
    if job["spec"].get("suspend") or "Suspended" in conditions:
        return JobState.SUSPENDED, conditions.get("Suspended", {}).get("message")
    return JobState.ACTIVE, None


def lost_pods(job: Mapping[str, Any]) -> tuple[Pod, ...]:
    """The pod that the podFailurePolicy found, by the message of the job's condition; one that nobody names
    where it found none: that one was asked to end, unless a pod that is still there says why it failed."""
    condition = _true_conditions(job).get("Failed", {})
    message = condition.get("message", "")
    if found := _DISRUPTED.match(message):
        return (Pod(found["pod"], _rank(found["pod"]), disruption=message),)
    if found := _EXITED.match(message):
        return (Pod(found["pod"], _rank(found["pod"]), exit_code=int(found["code"])),)
    if condition.get("reason") == "BackoffLimitExceeded":
        # After all those that are there, which say more.
        return (Pod(job["metadata"]["name"], job["spec"]["completions"], exit_code=_ASKED),)
    return ()


def pod_rank(pod: Mapping[str, Any]) -> int:
    """The pod's completion index."""
    return int(pod["metadata"].get("annotations", {}).get(_INDEX, "0"))


def _rank(name: str) -> int:
    """The index in a pod's name: `<job>-<index>-<five letters>`."""
    return int(name.rsplit("-", 2)[1])


def _true_conditions(job: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    conditions = job.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
