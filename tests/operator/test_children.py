"""Whole reconciles of a run whose job cannot be made, over HTTP: what stays of it, and what is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bitnet_operator.api import ApiError
from bitnet_operator.cluster import Cluster
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.policies.awaited import LOOK_AGAIN_SECONDS
from looked_at import JOBS, RUN, LookedAt
from runs_api import RunsApi
from small_run import small_document

JOB = f"{JOBS}/small-0"
ORDER = "/api/v1/namespaces/team/configmaps/small-0-order"
WORKERS = {"count": 2, "gpusPerWorker": 0, "microBatchSize": 4, "backend": "Job"}


@pytest.fixture
async def scene() -> AsyncIterator[LookedAt]:
    """A run that nobody has looked at yet."""
    server = RunsApi()
    server.put(RUN, small_document(workers=WORKERS))
    async with server.served() as api, aiohttp.ClientSession() as http:
        yield LookedAt(server, Cluster(api, http, "trainer:1", RunMetrics()))


async def test_pods_of_a_new_shape_never_get_the_order_of_a_job_that_could_not_be_made(
    scene: LookedAt,
) -> None:
    scene.server.refuses = "spec.template.spec: Invalid value"
    await scene.look()
    assert ORDER in scene.server.objects
    scene.server.refuses = None
    scene.edit(workers=WORKERS | {"count": 1})
    await scene.look_as_the_queue_does()
    await scene.look_as_the_queue_does()
    assert scene.server.objects[JOB]["spec"]["completions"] == 1
    order = json.loads(scene.server.objects[ORDER]["data"]["order.json"])
    (segment,) = scene.run["status"]["segments"]
    assert order["plan"]["phases"][0]["shape"] == segment["shape"]
    assert segment["shape"]["workers"] == 1


async def test_an_order_that_is_right_is_left_as_it_is(scene: LookedAt) -> None:
    scene.server.refuses = "spec.template.spec: Invalid value"
    await scene.look()
    scene.server.refuses = None
    scene.edit(retries=2)
    before = scene.server.objects[ORDER]["metadata"]["uid"]
    await scene.look()
    assert JOB in scene.server.objects
    assert scene.server.objects[ORDER]["metadata"]["uid"] == before


async def test_an_order_that_is_on_its_way_out_is_not_taken_for_one_that_stays(scene: LookedAt) -> None:
    scene.server.refuses = "spec.template.spec: Invalid value"
    await scene.look()
    scene.server.refuses = None
    scene.server.objects[ORDER]["metadata"]["finalizers"] = ["foregroundDeletion"]
    for count in (1, 2):
        scene.edit(workers=WORKERS | {"count": count})
        await scene.look_as_the_queue_does()
        assert JOB not in scene.server.objects
    scene.server.objects[ORDER]["metadata"]["finalizers"] = []
    scene.server.delete(ORDER)
    await scene.look()
    assert {JOB, ORDER} <= scene.server.objects.keys()


async def test_another_refusal_is_told_in_place_of_the_first_and_then_nothing_is_asked(
    scene: LookedAt,
) -> None:
    for words in ("foo: Invalid value", "bar: Invalid value"):
        scene.server.refuses = words
        scene.edit(workers=WORKERS | {"template": {"metadata": {"labels": {"asked": words[:3]}}}})
        for _ in range(3):
            await scene.look_as_the_queue_does()
        (failed,) = [each for each in scene.run["status"]["conditions"] if each["type"] == "Failed"]
        assert (failed["message"], failed["observedGeneration"]) == (
            words,
            scene.run["metadata"]["generation"],
        )
    assert [event["message"] for event in scene.server.of("events")] == [
        "foo: Invalid value",
        "bar: Invalid value",
    ]
    scene.server.written.clear()
    await scene.look()
    assert scene.server.written == []


QUOTA = "exceeded quota: gpus, requested: count/jobs.batch=1, used: count/jobs.batch=3"


async def test_a_job_that_a_quota_or_a_role_forbids_is_waited_for_with_the_servers_words(
    scene: LookedAt,
) -> None:
    scene.server.forbids = QUOTA
    assert await scene.look() == LOOK_AGAIN_SECONDS
    status = scene.run["status"]
    (running,) = [each for each in status["conditions"] if each["type"] == "Running"]
    assert (running["status"], running["reason"], running["message"]) == ("False", "Forbidden", QUOTA)
    assert (status["phase"], status.get("segments", [])) == ("Pending", [])
    scene.server.written.clear()
    await scene.look()
    assert not any("status" in path for path in scene.server.written)
    scene.server.forbids = None
    await scene.look()
    assert JOB in scene.server.objects
    assert scene.run["status"]["phase"] == "Running"


async def test_a_mended_run_that_waits_for_its_quota_is_not_said_to_have_failed(scene: LookedAt) -> None:
    scene.edit(seed=-1)
    await scene.look()
    assert scene.run["status"]["phase"] == "Failed"
    scene.server.forbids = QUOTA
    scene.edit(seed=0)
    await scene.look()
    assert scene.run["status"]["phase"] == "Pending"
    assert [each["type"] for each in scene.run["status"]["conditions"]] == ["Running"]


async def test_in_a_namespace_that_ends_nothing_is_waited_for(scene: LookedAt) -> None:
    scene.server.namespace_ends = True
    with pytest.raises(ApiError) as refusal:
        await scene.look()
    assert refusal.value.passing
    assert "status" not in scene.run
