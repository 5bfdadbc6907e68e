"""desired: what a child job is to look like, as Kubernetes manifests. Pure."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from bitnet_crds import BitNetRun, Order
from bitnet_crds.locations import PVC_MOUNT_ROOT, parse_location
from bitnet_crds.protocol import PROGRESS_PORT, TOLD_ANNOTATION, TOLD_FILE, Told
from bitnet_crds.spec import API_VERSION, KIND, BitNetRunSpec
from bitnet_operator.pod_template import merge
from bitnet_operator.segments import pods_of_first_phase, pods_of_order, told

RUN_LABEL = "bitnet.training/run"
JOB_LABEL = "bitnet.training/job"
PODS_ANNOTATION = "bitnet.training/pods"
"""Of a job: `Segment.pods` of the segment that it was made for."""
CONTAINER = "pytorch"
QUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")
"""Labels of a run that go on to its jobs, for a queueing system that decides when they may have pods."""
ORDER_FOLDER = "/etc/bitnet"
CACHE_FOLDER = "/var/cache/bitnet"
_TOLD_FOLDER, _, _TOLD_NAME = TOLD_FILE.rpartition("/")


def order_name(job: str) -> str:
    """Name of the ConfigMap that holds a job's order and plan."""
    return f"{job}-order"


def order_config_map(run: BitNetRun, order: Order) -> dict[str, Any]:
    """The ConfigMap that tells a job's pods what to train. `plan.json` is there for people to read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(run, order_name(order.job), order.job),
        "data": {
            "order.json": order.model_dump_json(by_alias=True, exclude_none=True),
            "plan.json": order.plan.model_dump_json(by_alias=True, indent=2),
        },
    }


def child_metadata(run: BitNetRun, name: str, job: str) -> dict[str, Any]:
    """Metadata of a child: labels to find it by, and the owner with which it goes."""
    return {
        "name": name,
        "namespace": run.metadata.namespace,
        "labels": labels(run, job),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.metadata.name,
                "uid": run.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def job_metadata(run: BitNetRun, order: Order) -> dict[str, Any]:
    """Metadata of the job itself: a child's, the labels by which the job is queued, and what its pods are
    made from, by which an operator that finds it knows whether it is still right."""
    metadata = child_metadata(run, order.job, order.job)
    queued = {label: run.metadata.labels[label] for label in QUEUE_LABELS if label in run.metadata.labels}
    return metadata | {
        "labels": metadata["labels"] | queued,
        "annotations": {PODS_ANNOTATION: pods_of_order(order)},
    }


def labels(run: BitNetRun, job: str) -> dict[str, str]:
    """Labels of a job, its pods and its ConfigMap."""
    return {
        RUN_LABEL: run.metadata.name,
        JOB_LABEL: job,
        "app.kubernetes.io/managed-by": "bitnet-operator",
    }


def pod_template(
    run: BitNetRun, order: Order, trainer_image: str, claims: Iterable[str] | None = None
) -> dict[str, Any]:
    """The template of a job's pods: the operator's own, with those of spec.workers and of the phase that the
    pods begin with merged over it. `claims` are mounted, or all that the run's addresses name.

    Pods hold no Kubernetes credentials: they are asked, and answer; what they are told is an annotation, and
    a file to them.
    """
    job, pods = order.job, pods_of_first_phase(order)
    gpus = pods.gpus_per_worker
    volumes = {claim: _volume(claim) for claim in sorted(_claims(run.spec) if claims is None else claims)}
    base = {
        "metadata": {
            "labels": labels(run, job),
            "annotations": {TOLD_ANNOTATION: as_annotation(told(run.spec))},
        },
        "spec": {
            "automountServiceAccountToken": False,
            # A Service called `bitnet` would set BITNET_PORT otherwise.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 60,
            "containers": [
                {
                    "name": CONTAINER,
                    "image": trainer_image,
                    "command": ["python", "-m", "bitnet_trainer"],
                    "args": ["--order", f"{ORDER_FOLDER}/order.json"],
                    "env": [
                        {"name": "PYTHONUNBUFFERED", "value": "1"},
                        # A user that the image does not know has no home that it could write to.
                        {"name": "HF_HOME", "value": f"{CACHE_FOLDER}/huggingface"},
                        {"name": "BITNET_MODEL_CACHE", "value": f"{CACHE_FOLDER}/models"},
                        {"name": "BITNET_TEXT_CACHE", "value": f"{CACHE_FOLDER}/text"},
                        *_tracking(run.spec),
                    ],
                    "ports": [{"name": "progress", "containerPort": PROGRESS_PORT}],
                    "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {},
                    "volumeMounts": [
                        {"name": "order", "mountPath": ORDER_FOLDER, "readOnly": True},
                        {"name": "told", "mountPath": _TOLD_FOLDER, "readOnly": True},
                        {"name": "shared-memory", "mountPath": "/dev/shm"},
                        {"name": "cache", "mountPath": CACHE_FOLDER},
                        *(
                            {"name": volume, "mountPath": f"{PVC_MOUNT_ROOT}/{claim}"}
                            for claim, volume in volumes.items()
                        ),
                    ],
                }
            ],
            "volumes": [
                {"name": "order", "configMap": {"name": order_name(job)}},
                {"name": "told", "downwardAPI": {"items": [_told_item()]}},
                # NCCL and data loading share memory through /dev/shm, of which a container has 64 MiB.
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
                # Models fetched from a hub or a bucket, and what goes to one (`Order.scratch`). A claim here
                # keeps them for the next pod.
                {"name": "cache", "emptyDir": {}},
                *(
                    {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
                    for claim, volume in volumes.items()
                ),
            ],
        },
    }
    # The labels once more: without them nobody would find the pods again.
    found_by = {"metadata": {"labels": labels(run, job)}}
    for template in (*pods.templates, found_by):
        base = merge(base, template)
    return base


def as_annotation(words: Told) -> str:
    """What a pod is told, as its annotation has it."""
    return words.model_dump_json(by_alias=True, exclude_none=True)


def _told_item() -> dict[str, Any]:
    field = f"metadata.annotations['{TOLD_ANNOTATION}']"
    return {"path": _TOLD_NAME, "fieldRef": {"fieldPath": field}}


def _tracking(spec: BitNetRunSpec) -> Iterable[dict[str, Any]]:
    """The environment of wandb, for a run that is tracked there."""
    if spec.tracking is None:
        return
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        yield {"name": name, "value": f"{CACHE_FOLDER}/wandb"}
    if (secret := spec.tracking.wandb.secret) is not None:
        # Optional: without it figures are kept, and a warning says so; the pods would not start else.
        reference = {"name": secret, "key": "WANDB_API_KEY", "optional": True}
        yield {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": reference}}


def _volume(claim: str) -> str:
    """The name of a claim's volume: `claim-NAME` where a volume may be called so. A volume's name is a DNS
    label, a claim's a DNS subdomain, with dots and up to 253 characters."""
    name = f"claim-{claim}"
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        return name
    return f"claim-{hashlib.sha256(claim.encode()).hexdigest()[:16]}"


def _claims(spec: BitNetRunSpec) -> set[str]:
    claims = (parse_location(address).claim for address in _addresses(spec))
    return {claim for claim in claims if claim is not None}


def _addresses(spec: BitNetRunSpec) -> Iterable[str]:
    teacher = spec.teacher.from_ if spec.teacher else None
    yield from filter(None, (spec.model.from_, spec.model.tokenizer, teacher))
    yield spec.checkpoint.uri
    yield from (source.uri for source in spec.data.sources)
