"""Leadership against a server that keeps a lease as the API server does: by version, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from bitnet_operator import leader as leader_module
from bitnet_operator.api import Api, ApiError
from bitnet_operator.election import HOLD_SECONDS, LEASE_SECONDS
from bitnet_operator.leader import Leadership, NotLeadingError

PATH = "/apis/coordination.k8s.io/v1/namespaces/team/leases"


class LeaseServer:
    """The part of an API server that an election needs, with faults at will."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.hangs = False
        self.over = asyncio.Event()
        """What hangs goes on at the test's end."""
        self.written: list[str] = []
        """Paths of all writes that arrived."""

    @property
    def holder(self) -> str:
        return "" if self.lease is None else str(self.lease["spec"]["holderIdentity"])

    async def answer(self, request: web.Request) -> web.Response:
        if self.hangs:
            await self.over.wait()
        if self.down:
            return self._refused(500, "etcd is away")
        if request.method != "GET":
            self.written.append(request.path)
        if request.method == "POST":
            if self.lease is not None:
                return self._refused(409, "there is one")
            self.lease = {"metadata": {"resourceVersion": "1"}, "spec": (await request.json())["spec"]}
        elif self.lease is None:
            return self._refused(404, "no lease")
        elif request.method == "PATCH":
            body = await request.json()
            version = self.lease["metadata"]["resourceVersion"]
            if body["metadata"]["resourceVersion"] != version:
                return self._refused(409, "it was changed")
            metadata = {"resourceVersion": str(int(version) + 1)}
            self.lease = {"metadata": metadata, "spec": self.lease["spec"] | body["spec"]}
        return web.json_response(self.lease)

    def _refused(self, status: int, message: str) -> web.Response:
        return web.json_response({"message": message, "details": {"name": "bitnet"}}, status=status)


@pytest.fixture
def server() -> LeaseServer:
    return LeaseServer()


@pytest.fixture
async def api(server: LeaseServer) -> AsyncIterator[Api]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}")) as connection:
        yield Api(connection)
    server.over.set()
    await runner.cleanup()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(leader_module, "LOOK_SECONDS", 0.2)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def replica(api: Api, identity: str, clock: Clock) -> Leadership:
    return Leadership(api, "team", "bitnet", identity, clock=clock)


async def test_the_first_leads_and_the_second_stands_by_until_it_gives_the_lease_up(
    api: Api, server: LeaseServer
) -> None:
    clock = Clock()
    first, second = replica(api, "first", clock), replica(api, "second", clock)
    async with asyncio.timeout(5):
        await first.gain()
    assert (first.leads, server.holder) == (True, "first")
    assert server.lease is not None
    assert server.lease["spec"]["leaseDurationSeconds"] == LEASE_SECONDS
    waiting = asyncio.create_task(second.gain())
    await asyncio.sleep(0.1)
    assert not second.leads
    await first.release()
    async with asyncio.timeout(5):
        await waiting
    assert (first.leads, second.leads, server.holder) == (False, True, "second")
    assert server.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_renews_and_its_standby_takes_over_once_it_does_not(
    api: Api, server: LeaseServer
) -> None:
    clock = Clock()
    first, second = replica(api, "first", clock), replica(api, "second", clock)
    await first.gain()
    keeping, waiting = asyncio.create_task(first.keep()), asyncio.create_task(second.gain())
    for _ in range(4):
        clock.now += 5
        await asyncio.sleep(0.05)
    assert (first.leads, second.leads) == (True, False)
    keeping.cancel()
    await asyncio.sleep(0.05)
    clock.now += LEASE_SECONDS + 0.1
    async with asyncio.timeout(5):
        await waiting
    assert (first.leads, second.leads, server.holder) == (False, True, "second")


@pytest.mark.parametrize("fault", ["down", "hangs"])
async def test_a_leader_that_cannot_renew_stops_before_another_may_begin(
    api: Api, server: LeaseServer, fault: str
) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    setattr(server, fault, True)
    keeping = asyncio.create_task(leadership.keep())
    clock.now += HOLD_SECONDS - 0.1
    await asyncio.sleep(0.5)
    assert leadership.leads
    assert not keeping.done()
    clock.now += 0.2
    async with asyncio.timeout(5):
        await keeping
    assert not leadership.leads


async def test_a_leader_that_was_away_for_too_long_ends_though_nobody_took_the_lease(
    api: Api, server: LeaseServer
) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    clock.now += HOLD_SECONDS + 1
    async with asyncio.timeout(5):
        await leadership.keep()
    assert not leadership.leads
    server.written.clear()
    await leadership.release()
    assert server.written == []


async def test_a_leader_whose_lease_another_has_ends(api: Api, server: LeaseServer) -> None:
    leadership = replica(api, "first", Clock())
    await leadership.gain()
    assert server.lease is not None
    server.lease = {"metadata": {"resourceVersion": "9"}, "spec": {"holderIdentity": "second"}}
    async with asyncio.timeout(5):
        await leadership.keep()
    assert server.holder == "second"


async def test_a_standby_outlives_a_server_that_is_away(api: Api, server: LeaseServer) -> None:
    server.down = True
    leadership = replica(api, "first", Clock())
    gaining = asyncio.create_task(leadership.gain())
    await asyncio.sleep(0.1)
    server.down = False
    async with asyncio.timeout(5):
        await gaining


async def test_what_is_fenced_writes_only_while_its_replica_leads(api: Api, server: LeaseServer) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    fenced = api.fenced(leadership.remaining)

    async def write_all() -> None:
        for write in (
            fenced.create("/things", {}),
            fenced.merge_patch("/things/1", {}),
            fenced.delete("/things/1"),
        ):
            with pytest.raises(NotLeadingError):
                await write

    await write_all()
    assert server.written == []
    await leadership.gain()
    server.written.clear()
    await fenced.delete("/things/1")
    assert server.written == ["/things/1"]
    clock.now += HOLD_SECONDS
    await write_all()
    assert server.written == ["/things/1"]
    assert (await fenced.get("/things/1"))["spec"]["holderIdentity"] == "first"


async def test_a_write_is_given_up_when_the_lease_ends(api: Api, server: LeaseServer) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    clock.now += HOLD_SECONDS - 0.3
    server.hangs = True
    async with asyncio.timeout(5):
        with pytest.raises(ApiError, match="does not answer"):
            await api.fenced(leadership.remaining).delete("/things/1")
