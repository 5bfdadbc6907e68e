"""Liveness: /healthz answers 200 while the operator still sees its cluster, and 503 once it does not."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


class Liveness:
    """The age of the last time that the operator saw its cluster: the leader all runs, a standby the lease.

    kopf's own endpoint stays green when its watches are dead; this one asks for what matters.
    """

    def __init__(self, limit_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit_seconds
        self._clock = clock
        self._seen = clock()
        self.role = "starting"
        """What the replica is, in a word that the answer begins with; it leads once it says so."""

    def saw(self) -> None:
        """The cluster was seen just now."""
        self._seen = self._clock()

    async def answer(self, _request: web.Request) -> web.Response:
        """One probe."""
        age = self._clock() - self._seen
        alive = age <= self._limit
        text = f"{self.role}; the cluster was last seen {age:.0f} s ago, the limit is {self._limit:.0f} s\n"
        return web.Response(status=200 if alive else 503, text=text)


@asynccontextmanager
async def serve(liveness: Liveness, port: int) -> AsyncIterator[None]:
    """Serves /healthz on all addresses until the block ends."""
    app = web.Application()
    app.router.add_get("/healthz", liveness.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
