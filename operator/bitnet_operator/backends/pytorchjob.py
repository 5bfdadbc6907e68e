"""The PyTorchJob backend (kubeflow.org/v1): what the child looks like, and how its state is read."""

from collections.abc import Mapping
from typing import Any

from bitnet_crds import BitNetRun, Order
from bitnet_operator.api import Resource
from bitnet_operator.backends.backend import Manifest
from bitnet_operator.desired import job_metadata, pod_template
from bitnet_operator.observation import JobState, Pod

RESOURCE = Resource("kubeflow.org", "v1", "pytorchjobs")
BESIDE: tuple[Resource, ...] = ()
MISSING = (
    f"the cluster has no {RESOURCE.plural}.{RESOURCE.group}: install Kubeflow's training operator and the "
    "run goes on, or make it anew with `backend: Job` in spec.workers, which needs none"
)

_REPLICA_TYPE_LABEL = "training.kubeflow.org/replica-type"
_REPLICA_INDEX_LABEL = "training.kubeflow.org/replica-index"


def manifests(run: BitNetRun, order: Order, trainer_image: str) -> tuple[tuple[Resource, Manifest], ...]:
    """The PyTorchJob of one job: one Master, which holds rank 0, and the other workers.

    A failed pod ends the job (restartPolicy Never): attempts are counted in the run's status, and a job that
    restarts pods by itself would leave ranks with a stale rendezvous. When the job has ended, pods that still
    run are removed with their GPUs, and those that ended stay for their logs.

    A backoffLimit is not set, not even 0: on reaching it the training operator (1.9) removes pods by a phase
    that lags behind their containers, and with them the only word of why the job failed.
    """
    template, shape = pod_template(run, order, trainer_image), order.shape
    replicas = {"Master": _replica(template, 1)}
    if shape.workers > 1:
        replicas["Worker"] = _replica(template, shape.workers - 1)
    manifest = {
        "apiVersion": f"{RESOURCE.group}/{RESOURCE.version}",
        "kind": "PyTorchJob",
        "metadata": job_metadata(run, order),
        "spec": {
            "nprocPerNode": str(shape.processes_per_worker),
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": replicas,
        },
    }
    return ((RESOURCE, manifest),)


def state(job: Mapping[str, Any]) -> tuple[JobState, str | None]:
    """Where a PyTorchJob stands, and what its controller says of it."""
    conditions = {condition["type"]: condition for condition in job.get("status", {}).get("conditions", [])}
    for type_, state in (("Succeeded", JobState.SUCCEEDED), ("Failed", JobState.FAILED)):
        condition = conditions.get(type_)
        if condition is not None and condition["status"] == "True":
            return state, condition.get("message")
    suspended = conditions.get("Suspended", {})
    if job["spec"]["runPolicy"].get("suspend") or suspended.get("status") == "True":
        return JobState.SUSPENDED, suspended.get("message")
    return JobState.ACTIVE, None


def lost_pods(_job: Mapping[str, Any]) -> tuple[Pod, ...]:
    """None: a PyTorchJob tells of no pod, and keeps those that failed."""
    return ()


def pod_rank(pod: Mapping[str, Any]) -> int:
    """The pod's index among the job's pods, from the labels that the training operator gives it."""
    labels = pod["metadata"]["labels"]
    if labels.get(_REPLICA_TYPE_LABEL) == "master":
        return 0
    return 1 + int(labels.get(_REPLICA_INDEX_LABEL, "0"))


def _replica(template: dict[str, Any], count: int) -> dict[str, Any]:
    return {"replicas": count, "restartPolicy": "Never", "template": template}
