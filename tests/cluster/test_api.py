"""What the API server's refusals say of the world: that it changed meanwhile, or that something is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config

from bitnet_operator.api import EVENTS, RUNS, Api, ApiError, Resource
from local_cluster import Kubectl

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("definition")]


@pytest.fixture
async def api(cluster: Path) -> AsyncIterator[Api]:
    """The operator's own client, as the administrator."""
    await config.load_kube_config(config_file=str(cluster))
    async with client.ApiClient() as connection:
        yield Api(connection)


async def test_a_run_deleted_since_it_was_observed_is_the_world_changing(api: Api, namespace: str) -> None:
    with pytest.raises(ApiError, match='"gone" not found') as refused:
        await api.merge_patch(RUNS.path(namespace, "gone", "status"), {"status": {"step": 1}})
    assert refused.value.passing


async def test_a_namespace_that_goes_or_is_gone_is_the_world_changing(
    api: Api, kubectl: Kubectl, namespace: str
) -> None:
    doomed = f"{namespace}-doomed"
    event = {"metadata": {"generateName": "said-"}, "involvedObject": {"namespace": doomed}}
    kubectl("create", "namespace", doomed)
    kubectl("create", "configmap", "held", "-n", doomed)
    # A finalizer of the object inside keeps the namespace in deletion, until it is taken off.
    patch = ("patch", "configmap", "held", "-n", doomed, "--type=merge", "--patch")
    kubectl(*patch, '{"metadata": {"finalizers": ["bitnet.training/test"]}}')
    kubectl("delete", "namespace", doomed, "--wait=false")
    with pytest.raises(ApiError, match="being terminated") as going:
        await api.create(EVENTS.path(doomed), event)
    assert going.value.passing

    kubectl(*patch, '{"metadata": {"finalizers": null}}')
    kubectl("wait", "--for=delete", f"namespace/{doomed}", "--timeout=60s")
    with pytest.raises(ApiError, match="not found") as gone:
        await api.create(EVENTS.path(doomed), event)
    assert gone.value.passing


@pytest.mark.parametrize(
    "kind",
    [Resource("", "v1", "nothings"), Resource("nobody.example", "v1", "things")],
    ids=["kind", "group"],
)
async def test_a_kind_that_the_server_does_not_have_is_an_error(
    api: Api, namespace: str, kind: Resource
) -> None:
    with pytest.raises(ApiError) as refused:
        await api.get(kind.path(namespace))
    assert refused.value.status == 404
    assert not refused.value.passing
