"""apply: makes a decision true. Children first, then ONE status write, then events."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from bitnet_crds import BitNetRun, BitNetRunStatus, Plan, parse_run
from bitnet_crds.protocol import TOLD_ANNOTATION
from bitnet_crds.spec import API_VERSION, KIND
from bitnet_operator.api import (
    CONFIG_MAPS,
    EVENTS,
    FIELD_MANAGER,
    PODS,
    RUNS,
    Api,
    ApiError,
    Resource,
    is_owned,
)
from bitnet_operator.backends import job as job_backend
from bitnet_operator.backends import removal
from bitnet_operator.backends.backend import Backend
from bitnet_operator.backends.kinds import backend_of
from bitnet_operator.decision import (
    ChildForbiddenError,
    ChildRefusedError,
    Decision,
    Event,
    KindMissingError,
    NamespaceEndingError,
    Tell,
)
from bitnet_operator.desired import PODS_ANNOTATION, as_annotation, order_config_map, order_name
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Key, Observation
from bitnet_operator.removal import FINALIZER
from bitnet_operator.segments import order_of, removal_job

log = logging.getLogger(__name__)

EVENT_MESSAGE_LIMIT = 1024
"""Characters that Kubernetes takes in an Event's message."""
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


async def apply(
    api: Api, trainer_image: str, key: Key, observation: Observation, plan: Plan | None, decision: Decision
) -> None:
    """Makes the decision true, so that doing it twice is doing it once.

    Raises ChildRefusedError where the API server finds the child wrong, ChildForbiddenError where it may not
    be made now, KindMissingError where the server knows no such kind, NamespaceEndingError where what a
    deleted run keeps can be removed no more, and ApiError where it refuses anything else: the queue then
    comes back to it.
    """
    backend = backend_of(observation.document)
    version = observation.document["metadata"]["resourceVersion"]
    if decision.held:
        # Before anything is made that could write what is to be removed.
        version = await _hold(api, key, observation, version, held=True)
    if decision.ensure is not None and plan is not None and observation.job(decision.ensure) is None:
        run = parse_run(observation.document)
        try:
            await _ensure(api, backend, trainer_image, run, plan, decision.ensure, decision.status)
        except ApiError as error:
            if error.is_missing_kind:
                raise KindMissingError(backend.MISSING) from error
            if error.status == HTTPStatus.FORBIDDEN and not error.passing:
                raise ChildForbiddenError(str(error)) from error
            if error.status not in _REFUSED:
                raise
            raise ChildRefusedError(str(error)) from error
    if decision.tell is not None:
        await _tell(api, key.namespace, decision.tell)
    for job in decision.delete:
        for kind in (backend.RESOURCE, *backend.BESIDE):
            await _delete(api, kind.path(key.namespace, job))
        await _delete(api, CONFIG_MAPS.path(key.namespace, order_name(job)))
    if decision.removal and plan is not None:
        await _ensure_removal(api, trainer_image, parse_run(observation.document), plan)
    elif decision.removal is False:
        await _delete_removal(api, key)
    version = await _write_status(api, key, observation, version, decision.status)
    if decision.held is False:
        # After the status: the run may be gone with it.
        await _hold(api, key, observation, version, held=False)
    for event in decision.events:
        await _post(api, key, observation, event)


async def _ensure(
    api: Api,
    backend: Backend,
    trainer_image: str,
    run: BitNetRun,
    plan: Plan,
    job: str,
    status: BitNetRunStatus,
) -> None:
    """The job and its order exist afterwards. The order comes first, since the job's pods mount it."""
    namespace = run.metadata.namespace
    segment = next(segment for segment in reversed(status.segments) if segment.job == job)
    order = order_of(run, plan, segment)
    children = backend.manifests(run, order, trainer_image)
    for kind, manifest in ((CONFIG_MAPS, order_config_map(run, order)), *children):
        await _create(api, kind, manifest)
    log.info("%s/%s: job %s is there", namespace, run.metadata.name, job)


async def _create(api: Api, kind: Resource, manifest: Mapping[str, Any]) -> None:
    """Creates a child, which nobody changes afterwards. One that this run made before is as good, unless it
    holds other data: an order from before the spec was changed, whose job was never made."""
    metadata = manifest["metadata"]
    try:
        await api.create(kind.path(metadata["namespace"]), manifest)
    except ApiError as error:
        if error.status != HTTPStatus.CONFLICT:
            raise
        existing = await api.get(kind.path(metadata["namespace"], metadata["name"]))
        if not is_owned(existing, metadata["ownerReferences"][0]["uid"]):
            # Of an earlier run of this name, most likely, whose children the cluster is still removing.
            raise ApiError(error.status, f"{metadata['name']} exists and is not this run's") from error
        if "deletionTimestamp" in existing["metadata"] or existing.get("data") != manifest.get("data"):
            # Nobody reads it: without a job there are no pods. It is made anew once it is gone.
            await _delete(api, kind.path(metadata["namespace"], metadata["name"]))
            raise ApiError(error.status, f"{metadata['name']} was an earlier order") from error


async def _hold(api: Api, key: Key, observation: Observation, version: str, *, held: bool) -> str:
    """The run has the finalizer or has it not, as nobody wrote since `version`; its new version."""
    before = observation.document["metadata"].get("finalizers") or []
    if (FINALIZER in before) == held:
        return version
    after = [*before, FINALIZER] if held else [name for name in before if name != FINALIZER]
    patch = {"metadata": {"resourceVersion": version, "finalizers": after}}
    return str((await api.merge_patch(RUNS.path(*key), patch))["metadata"]["resourceVersion"])


async def _ensure_removal(api: Api, trainer_image: str, run: BitNetRun, plan: Plan) -> None:
    """The job that removes what a deleted run keeps exists afterwards, and its order before it."""
    for kind, manifest in removal.manifests(run, plan, trainer_image):
        name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        try:
            await api.create(kind.path(namespace), manifest)
        except ApiError as error:
            if "NamespaceTerminating" in error.causes:
                raise NamespaceEndingError(f"namespace {namespace} is being deleted") from error
            if error.status in (*_REFUSED, HTTPStatus.FORBIDDEN):
                # Whatever it is, it is tried again.
                raise ChildRefusedError(str(error)) from error
            if error.status != HTTPStatus.CONFLICT:
                raise
            existing = await api.get(kind.path(namespace, name))
            said = (existing["metadata"].get("annotations") or {}).get(PODS_ANNOTATION)
            if said != manifest["metadata"]["annotations"][PODS_ANNOTATION]:
                # An earlier run's of this name, whose order may lead elsewhere.
                await _delete(api, kind.path(namespace, name))
                raise ApiError(error.status, f"{name} exists and is not this run's") from error
    log.info("%s/%s: %s is there", run.metadata.namespace, run.metadata.name, removal_job(run.metadata.name))


async def _delete_removal(api: Api, key: Key) -> None:
    job = removal_job(key.name)
    await _delete(api, job_backend.RESOURCE.path(key.namespace, job))
    await _delete(api, CONFIG_MAPS.path(key.namespace, order_name(job)))


async def _tell(api: Api, namespace: str, tell: Tell) -> None:
    """The pod has the words as its annotation; one that is gone has nothing more to hear."""
    annotations = {TOLD_ANNOTATION: as_annotation(tell.words)}
    try:
        await api.merge_patch(PODS.path(namespace, tell.pod), {"metadata": {"annotations": annotations}})
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise


async def _delete(api: Api, path: str) -> None:
    try:
        await api.delete(path)
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise


async def _write_status(
    api: Api, key: Key, observation: Observation, version: str, status: BitNetRunStatus
) -> str:
    """Writes what changed, and only if nobody else wrote since `version`; the run's new version."""
    before = observation.document.get("status") or {}
    after = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    patch = _top_level_patch(before, after)
    if not patch:
        return version
    body = {"metadata": {"resourceVersion": version}, "status": patch}
    return str((await api.merge_patch(RUNS.path(*key, "status"), body))["metadata"]["resourceVersion"])


def _top_level_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that turns one status into the other: whole fields, null for those gone."""
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    return changed | {name: None for name in before if name not in after}


async def _post(api: Api, key: Key, observation: Observation, event: Event) -> None:
    metadata = observation.document["metadata"]
    now = timestamp(datetime.now(UTC))
    body = {
        "metadata": {"generateName": f"{key.name}-", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:EVENT_MESSAGE_LIMIT],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await api.create(EVENTS.path(key.namespace), body)
    except ApiError as error:
        if "NamespaceTerminating" not in error.causes:
            raise
        log.warning("%s: %s: %s", key, event.reason, event.message)
