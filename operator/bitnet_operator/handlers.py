"""Events into wake-ups: whatever happened to a run or a child of it, the run is looked at afresh."""

from collections.abc import Iterator
from typing import Any

import kopf

from bitnet_crds.spec import API_GROUP
from bitnet_operator.api import Resource
from bitnet_operator.backends.kinds import BACKENDS
from bitnet_operator.desired import RUN_LABEL
from bitnet_operator.observation import Key
from bitnet_operator.queue import WorkQueue


def register(registry: kopf.OperatorRegistry, queue: WorkQueue[Key]) -> None:
    """Subscribes the queue to runs, their jobs and their pods, with the login of the Kubernetes client."""

    async def wake_run(namespace: str | None, name: str | None, **_: Any) -> None:
        queue.wake(Key(namespace or "", name or ""))

    async def wake_owner(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        queue.wake(Key(namespace or "", labels[RUN_LABEL]))

    kopf.on.login(registry=registry)(kopf.login_via_client)
    ours = {RUN_LABEL: kopf.PRESENT}
    kopf.on.event(API_GROUP, "bitnetruns", registry=registry)(wake_run)
    # kopf serves those that the cluster has, and a kind that is installed later from then on.
    for kind in _job_kinds():
        kopf.on.event(kind.group, kind.plural, labels=ours, registry=registry)(wake_owner)
    kopf.on.event("", "v1", "pods", labels=ours, registry=registry)(wake_owner)


def kopf_settings() -> kopf.OperatorSettings:
    """kopf as the source of events alone."""
    settings = kopf.OperatorSettings()
    # The operator posts its own events, once a decision is written; kopf would post each log line as one.
    settings.posting.enabled = False
    # Handlers' own filters are kopf's; with these the API server itself sends no pod but the runs'.
    settings.watching.label_selectors["", "v1", "pods"] = RUN_LABEL
    for kind in _job_kinds():
        settings.watching.label_selectors[kind.group, kind.plural] = RUN_LABEL
    return settings


def _job_kinds() -> Iterator[Resource]:
    return (backend.RESOURCE for backend in BACKENDS.values())
