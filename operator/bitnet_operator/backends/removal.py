"""The Job (batch/v1) that removes what a deleted run keeps, in a pod made from the run's own template."""

from collections.abc import Mapping
from typing import Any

from bitnet_crds import BitNetRun, Plan
from bitnet_crds.locations import parse_location
from bitnet_operator.api import CONFIG_MAPS, Resource
from bitnet_operator.backends.backend import Manifest
from bitnet_operator.backends.job import RESOURCE
from bitnet_operator.desired import (
    CONTAINER,
    ORDER_FOLDER,
    PODS_ANNOTATION,
    labels,
    order_config_map,
    order_name,
    pod_template,
)
from bitnet_operator.segments import removal_name, removal_order

TRIES = 2
"""Pods, one after the other, before the job has failed and says why: one of them may be drained away. Further
tries are the operator's, which tells why."""
DEADLINE_SECONDS = 3600
"""After which it has failed too: a pod that cannot come up is no end."""
STAYS_SECONDS = 24 * 3600
"""After which a finished one goes by itself, where no operator is left that takes it away."""

_KEPT = (
    *("name", "image", "imagePullPolicy", "workingDir", "securityContext"),
    *("env", "envFrom", "volumeMounts", "volumeDevices"),
)
"""What a container has from its template. Probes and hooks are for a trainer that serves."""
_RESOURCES = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}}


def manifests(run: BitNetRun, plan: Plan, trainer_image: str) -> tuple[tuple[Resource, Manifest], ...]:
    """The ConfigMap with the order, and the Job.

    Neither has the run for its owner: with a foreground deletion all that the run owns goes first.
    """
    order = removal_order(run, plan)

    def metadata(name: str) -> Manifest:
        return {
            "name": name,
            "namespace": order.namespace,
            "labels": labels(run, order.job),
            "annotations": {PODS_ANNOTATION: removal_name(run)},
        }

    claim = parse_location(run.spec.checkpoint.uri).claim
    template = pod_template(run, order, trainer_image, [] if claim is None else [claim])
    job = {
        "apiVersion": f"{RESOURCE.group}/{RESOURCE.version}",
        "kind": "Job",
        "metadata": metadata(order.job),
        "spec": {
            "backoffLimit": TRIES - 1,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": STAYS_SECONDS,
            "template": template | {"spec": _removing(template["spec"])},
        },
    }
    config_map = order_config_map(run, order) | {"metadata": metadata(order_name(order.job))}
    return (CONFIG_MAPS, config_map), (RESOURCE, job)


def _removing(spec: Mapping[str, Any]) -> Manifest:
    """A training pod's spec as one that removes: no devices, and of the other containers those alone that
    come up first, such as a proxy with restartPolicy Always."""
    trains = next(container for container in spec["containers"] if container["name"] == CONTAINER)
    removes = {key: trains[key] for key in _KEPT if key in trains} | {
        "command": ["python", "-m", "bitnet_trainer.remove"],
        "args": ["--order", f"{ORDER_FOLDER}/order.json"],
        "resources": _RESOURCES,
    }
    kept = {key: value for key, value in spec.items() if key != "resourceClaims"}
    if "initContainers" in kept:
        kept["initContainers"] = [_without_devices(container) for container in kept["initContainers"]]
    return kept | {"restartPolicy": "Never", "containers": [removes]}


def _without_devices(container: Mapping[str, Any]) -> Manifest:
    """Without what a device plugin or driver gives: resources with a domain, such as nvidia.com/gpu."""
    asked = container.get("resources") or {}
    plain = {
        kind: {name: amount for name, amount in asked[kind].items() if "/" not in name}
        for kind in ("limits", "requests")
        if asked.get(kind)
    }
    return {**container, "resources": plain}
