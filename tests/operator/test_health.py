"""Liveness: green while the runs can be listed, and red once they cannot."""

import asyncio
import urllib.error
import urllib.request

from bitnet_operator import health
from ports import free_port


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return str(answer.read().decode())


def probe(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def test_liveness_ends_with_the_last_sight_of_the_runs() -> None:
    now = 100.0
    liveness, port = health.Liveness(limit_seconds=30, clock=lambda: now), free_port()
    async with health.serve(liveness, port):
        assert await asyncio.to_thread(probe, port) == 200
        now = 131.0
        assert await asyncio.to_thread(probe, port) == 503
        liveness.saw()
        assert await asyncio.to_thread(probe, port) == 200


async def test_the_answer_begins_with_what_the_replica_is() -> None:
    liveness, port = health.Liveness(limit_seconds=30), free_port()
    async with health.serve(liveness, port):
        assert (await asyncio.to_thread(read, port)).startswith("starting; ")
        liveness.role = "standby"
        assert (await asyncio.to_thread(read, port)).startswith("standby; ")
