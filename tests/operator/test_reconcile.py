"""Whole reconciles of a run with `checkpoint.onDelete: Remove`, over HTTP: held, deleted, removed, gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from bitnet_operator.cluster import Cluster
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.removal import FINALIZER
from looked_at import JOBS, KEY, RUN, LookedAt
from runs_api import RunsApi
from small_run import small_document

REMOVAL = f"{JOBS}/small-removal"
ORDER = "/api/v1/namespaces/team/configmaps/small-removal-order"


@pytest.fixture
async def scene() -> AsyncIterator[LookedAt]:
    """A run that trains, held for its removal."""
    server = RunsApi()
    document = small_document(
        checkpoint={"uri": "file:///runs", "everySteps": 2, "onDelete": "Remove"},
        workers={"count": 2, "gpusPerWorker": 0, "microBatchSize": 4, "backend": "Job"},
    )
    server.put(RUN, document)
    async with server.served() as api, aiohttp.ClientSession() as http:
        yield LookedAt(server, Cluster(api, http, "trainer:1", RunMetrics()))


async def begin(scene: LookedAt) -> str:
    """Training begins, with one pod; that pod's path."""
    await scene.look()
    return scene.pod(f"{JOBS}/small-0")


async def removing(scene: LookedAt) -> None:
    """The run is deleted, its pods end, and its removal begins."""
    pod = await begin(scene)
    scene.server.delete(RUN)
    await scene.look()
    scene.server.delete(pod)
    await scene.look()
    assert REMOVAL in scene.server.objects


async def test_it_is_held_before_anything_is_made(scene: LookedAt) -> None:
    await scene.look()
    assert scene.finalizers == [FINALIZER]
    held, *rest = scene.server.written
    assert held == f"PATCH {RUN}"
    assert f"POST {JOBS}" in rest
    assert scene.run["status"]["segments"]
    scene.server.written.clear()
    await scene.look()
    assert f"PATCH {RUN}" not in scene.server.written


async def test_finalizers_of_others_stay(scene: LookedAt) -> None:
    scene.run["metadata"]["finalizers"] = ["else/where"]
    await scene.look()
    assert scene.finalizers == ["else/where", FINALIZER]
    scene.edit(checkpoint=scene.run["spec"]["checkpoint"] | {"onDelete": "Keep"})
    await scene.look()
    assert scene.finalizers == ["else/where"]


async def test_deleted_it_goes_after_its_jobs_its_pods_and_what_it_keeps(scene: LookedAt) -> None:
    pod = await begin(scene)
    scene.server.delete(RUN)
    await scene.look()
    assert f"{JOBS}/small-0" not in scene.server.objects
    # The job is gone and its pod still runs.
    for _ in range(3):
        await scene.look()
        assert REMOVAL not in scene.server.objects
    scene.server.delete(pod)
    await scene.look()
    assert {REMOVAL, ORDER} <= scene.server.objects.keys()
    scene.pod(REMOVAL)
    await scene.look()
    assert scene.finalizers == [FINALIZER]
    scene.ends(REMOVAL, "Complete")
    await scene.look()
    assert not {REMOVAL, ORDER, RUN} & scene.server.objects.keys()
    assert scene.reasons()[-1] == "CheckpointsRemoved"
    assert await scene.look() is None


async def test_kept_it_goes_as_it_always_did(scene: LookedAt) -> None:
    scene.edit(checkpoint={"uri": "file:///runs", "onDelete": "Keep"})
    await begin(scene)
    assert scene.finalizers == []
    scene.server.delete(RUN)
    assert RUN not in scene.server.objects
    assert await scene.look() is None


async def test_the_gpus_that_its_pods_hold_are_counted_until_they_have_ended(scene: LookedAt) -> None:
    def held() -> float | None:
        registry = CollectorRegistry()
        registry.register(scene.cluster.metrics)
        return registry.get_sample_value("bitnetrun_gpus", {"namespace": "team", "name": "small"})

    pod = await begin(scene)
    manifest = scene.server.objects[pod]
    (container,) = manifest["spec"]["containers"]
    container["resources"] = {"limits": {"nvidia.com/gpu": "8"}}
    scene.server.put(pod, manifest)
    await scene.look()
    assert held() == 8
    scene.server.put(pod, manifest | {"status": manifest["status"] | {"phase": "Failed"}})
    await scene.look()
    assert held() == 0


async def test_a_removal_that_failed_is_made_anew_and_a_person_may_give_it_up(scene: LookedAt) -> None:
    await removing(scene)
    scene.ends(REMOVAL, "Failed")
    wait = await scene.look()
    assert wait is not None
    assert scene.reasons()[-1] == "RemovalFailed"
    assert scene.finalizers == [FINALIZER]
    scene.now += timedelta(seconds=wait)
    await scene.look()
    assert REMOVAL not in scene.server.objects
    await scene.look()
    assert REMOVAL in scene.server.objects
    scene.edit(checkpoint=scene.run["spec"]["checkpoint"] | {"onDelete": "Keep"})
    await scene.look()
    assert not {REMOVAL, ORDER, RUN} & scene.server.objects.keys()


@pytest.mark.parametrize("how", ["refuses", "forbids"])
async def test_a_removal_that_the_server_refuses_is_told_with_its_words(scene: LookedAt, how: str) -> None:
    pod = await begin(scene)
    scene.server.delete(RUN)
    await scene.look()
    scene.server.delete(pod)
    setattr(scene.server, how, "spec.template.spec: Invalid value")
    assert await scene.look() is not None
    assert "spec.template.spec: Invalid value" in scene.server.of("events")[-1]["message"]
    assert scene.finalizers == [FINALIZER]


async def test_what_an_earlier_run_of_the_name_left_is_never_taken_for_its_own(scene: LookedAt) -> None:
    pod = await begin(scene)
    scene.server.put(ORDER, {"metadata": {"name": "small-removal-order", "annotations": {}}})
    scene.server.put(REMOVAL, {"metadata": {"name": "small-removal", "uid": "u-0"}, "spec": {}})
    scene.server.delete(RUN)
    await scene.look()
    scene.server.delete(pod)
    for _ in range(4):
        await scene.look_as_the_queue_does()
    assert scene.server.objects[REMOVAL]["metadata"]["uid"] != "u-0"
    assert "order.json" in scene.server.objects[ORDER]["data"]


async def test_a_removals_pod_is_its_own_and_the_next_run_of_the_name_waits_for_it(scene: LookedAt) -> None:
    await removing(scene)
    pod = scene.pod(REMOVAL)
    seen = await scene.cluster.observe(KEY)
    assert seen is not None
    assert seen.removal is not None
    assert (len(seen.removal.pods), seen.left_over) == (1, ())
    # A person takes the finalizer off, and applies the run again.
    document = scene.run
    document["metadata"]["finalizers"] = []
    scene.server.delete(RUN)
    metadata = {"name": "small", "namespace": "team", "uid": "u-2", "generation": 1}
    scene.server.put(RUN, {**document, "metadata": metadata, "status": {}})
    await scene.look()
    assert f"{JOBS}/small-0" not in scene.server.objects
    scene.server.delete(pod)
    await scene.look()
    assert f"{JOBS}/small-0" in scene.server.objects


@pytest.mark.parametrize("why", ["namespace", "spec"])
async def test_a_run_that_nothing_can_be_removed_for_goes(
    scene: LookedAt, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    pod = await begin(scene)
    scene.server.delete(RUN)
    await scene.look()
    scene.server.delete(pod)
    if why == "namespace":
        scene.server.namespace_ends = True
    else:
        scene.edit(checkpoint=scene.run["spec"]["checkpoint"] | {"key of another version": 1})
    await scene.look()
    assert RUN not in scene.server.objects
    if why == "namespace":
        assert "keeps at file:///runs stays there: namespace team is being deleted" in caplog.text
    else:
        assert scene.reasons()[-1] == "CheckpointsLeft"


async def test_a_run_that_is_deleted_before_it_was_seen_is_let_go(scene: LookedAt) -> None:
    scene.run["metadata"] |= {"finalizers": [FINALIZER]}
    scene.server.delete(RUN)
    await scene.look()
    assert RUN not in scene.server.objects
    assert REMOVAL not in scene.server.objects
