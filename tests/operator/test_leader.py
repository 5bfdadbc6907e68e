"""Leadership against a server that keeps a lease as the API server does: by version, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bitnet_operator import leader as leader_module
from bitnet_operator.api import Api, ApiError
from bitnet_operator.election import HOLD_SECONDS, LEASE_SECONDS
from bitnet_operator.leader import Leadership, NotLeadingError
from small_api import SmallApi

LEASE = "/apis/coordination.k8s.io/v1/namespaces/team/leases/bitnet"


def spec_of(server: SmallApi) -> dict[str, Any]:
    spec: dict[str, Any] = server.objects[LEASE]["spec"]
    return spec


def holder_of(server: SmallApi) -> str:
    return str(spec_of(server)["holderIdentity"])


@pytest.fixture
def server() -> SmallApi:
    return SmallApi()


@pytest.fixture
async def api(server: SmallApi) -> AsyncIterator[Api]:
    async with server.served() as api:
        yield api


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


async def settle(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def replica(api: Api, identity: str, clock: Clock) -> Leadership:
    return Leadership(api, "team", "bitnet", identity, clock=clock)


async def test_the_first_leads_and_the_second_stands_by_until_it_gives_the_lease_up(
    api: Api, server: SmallApi
) -> None:
    clock = Clock()
    first, second = replica(api, "first", clock), replica(api, "second", clock)
    async with asyncio.timeout(20):
        await first.gain()
    assert (first.leads, holder_of(server)) == (True, "first")
    assert spec_of(server)["leaseDurationSeconds"] == LEASE_SECONDS
    waiting = asyncio.create_task(second.gain())
    await asyncio.sleep(0.1)
    assert not second.leads
    await first.release()
    async with asyncio.timeout(20):
        await waiting
    assert (first.leads, second.leads, holder_of(server)) == (False, True, "second")
    assert spec_of(server)["leaseTransitions"] == 1


async def test_a_leader_renews_and_its_standby_takes_over_once_it_does_not(
    api: Api, server: SmallApi
) -> None:
    clock = Clock()
    first, second = replica(api, "first", clock), replica(api, "second", clock)
    await first.gain()
    keeping, waiting = asyncio.create_task(first.keep()), asyncio.create_task(second.gain())
    for _ in range(4):
        clock.now += 5
        # Renewed, and the standby has seen it.
        await settle(lambda: first.remaining() == HOLD_SECONDS)
        await settle(lambda: second._candidate.since == clock.now)
    assert (first.leads, second.leads) == (True, False)
    keeping.cancel()
    async with asyncio.timeout(20):
        while not waiting.done():  # one renewal more may have been on its way
            clock.now += LEASE_SECONDS + 0.1
            await asyncio.sleep(0.05)
    assert (first.leads, second.leads, holder_of(server)) == (False, True, "second")


@pytest.mark.parametrize("fault", ["down", "hangs"])
async def test_a_leader_that_cannot_renew_stops_before_another_may_begin(
    api: Api, server: SmallApi, fault: str
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
    async with asyncio.timeout(20):
        await keeping
    assert not leadership.leads


async def test_a_leader_that_was_away_for_too_long_ends_though_nobody_took_the_lease(
    api: Api, server: SmallApi
) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    clock.now += HOLD_SECONDS + 1
    async with asyncio.timeout(20):
        await leadership.keep()
    assert not leadership.leads
    server.written.clear()
    await leadership.release()
    assert server.written == []


async def test_a_leader_whose_lease_another_has_ends(api: Api, server: SmallApi) -> None:
    leadership = replica(api, "first", Clock())
    await leadership.gain()
    server.put(LEASE, {"spec": {"holderIdentity": "second"}})
    async with asyncio.timeout(20):
        await leadership.keep()
    assert holder_of(server) == "second"


async def test_a_standby_outlives_a_server_that_is_away(api: Api, server: SmallApi) -> None:
    server.down = True
    leadership = replica(api, "first", Clock())
    gaining = asyncio.create_task(leadership.gain())
    await asyncio.sleep(0.1)
    server.down = False
    async with asyncio.timeout(20):
        await gaining


async def test_a_standby_is_alive_by_its_looks_and_a_leader_by_its_work(api: Api) -> None:
    looks = 0

    def looked() -> None:
        nonlocal looks
        looks += 1

    clock = Clock()
    first = replica(api, "first", clock)
    await first.gain()
    second = Leadership(api, "team", "bitnet", "second", looked, clock)
    gaining = asyncio.create_task(second.gain())
    await settle(lambda: looks >= 2)
    await first.release()
    async with asyncio.timeout(20):
        await gaining
    seen = looks
    keeping = asyncio.create_task(second.keep())
    await asyncio.sleep(0.1)
    keeping.cancel()
    assert looks == seen


async def test_what_is_fenced_writes_only_while_its_replica_leads(api: Api, server: SmallApi) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    fenced = api.fenced(leadership.remaining)

    async def write_all() -> None:
        for write in (
            fenced.create("/things", {"metadata": {"name": "1"}}),
            fenced.merge_patch(LEASE, {}),
            fenced.delete(LEASE),
        ):
            with pytest.raises(NotLeadingError):
                await write

    await write_all()
    assert server.written == []
    await leadership.gain()
    server.written.clear()
    await fenced.delete(LEASE)
    assert server.written == [LEASE]
    clock.now += HOLD_SECONDS
    await write_all()
    assert server.written == [LEASE]
    assert (await fenced.get(LEASE))["spec"]["holderIdentity"] == "first"


async def test_a_write_is_given_up_when_the_lease_ends(api: Api, server: SmallApi) -> None:
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    clock.now += HOLD_SECONDS - 0.3
    server.hangs = True
    async with asyncio.timeout(20):
        with pytest.raises(ApiError, match="does not answer"):
            await api.fenced(leadership.remaining).delete(LEASE)


async def test_a_write_on_its_way_when_the_lease_ended_is_left_to_another_replica(
    api: Api, server: SmallApi
) -> None:
    """As of a process that was frozen meanwhile: whether the server took it, whoever leads now sees."""
    clock = Clock()
    leadership = replica(api, "first", clock)
    await leadership.gain()
    clock.now += HOLD_SECONDS - 0.3
    server.hangs = True

    def ends() -> None:
        clock.now += 1

    asyncio.get_running_loop().call_later(0.1, ends)
    async with asyncio.timeout(20):
        with pytest.raises(NotLeadingError):
            await api.fenced(leadership.remaining).delete(LEASE)
