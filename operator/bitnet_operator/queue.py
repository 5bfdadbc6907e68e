"""A keyed work queue: no key is worked on twice at once; wake-ups meanwhile fold into one more run."""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0


class Observer(Protocol):
    """Hears how the queue gets on."""

    def begun(self, late: float) -> None:
        """Work on a key begins, `late` seconds after it was due."""
        ...

    def ended(self, seconds: float, failed: bool) -> None:
        """It has ended after so many seconds; `failed` where it raised."""
        ...


class WorkQueue(Generic[K]):
    """Runs `work(key)` for every key that was woken, at most `concurrency` at a time.

    `work` returns the seconds after which its key is to be woken again, or none. A key whose work raises is
    tried again after a wait that doubles up to five minutes, until it succeeds once. Belongs to one event
    loop; `wake` may be called from that loop only.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        concurrency: int = 8,
        observer: Observer | None = None,
    ) -> None:
        self._work = work
        self._observer = observer
        self._since = float("inf")
        """When it began to work, by the loop's clock: what was due before was not late."""
        self._free = asyncio.Semaphore(concurrency)
        self._due: dict[K, float] = {}
        """When each waiting key is to be worked on, by the loop's clock."""
        self._heap: list[tuple[float, int, K]] = []
        """The same, ordered; entries that no longer agree with `_due` are stale and skipped."""
        self._order = itertools.count()
        self._active: set[K] = set()
        self._failures: dict[K, int] = {}
        self._woken = asyncio.Event()

    def wake(self, key: K, after: float = 0.0) -> None:
        """Has the key worked on in `after` seconds, or earlier where an earlier wake-up is pending."""
        due = asyncio.get_running_loop().time() + after
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._push(key)

    def length(self) -> int:
        """Keys that are due now and whose work has not begun; 0 while nobody works. From any thread."""
        now = time.monotonic()  # an event loop's clock, which has to be asked for in its own thread
        return sum(due <= now for due in list(self._due.values())) if now >= self._since else 0

    async def run(self) -> None:
        """Works until cancelled."""
        self._since = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._free.acquire()
                key = await self._next()
                group.create_task(self._process(key))

    def _push(self, key: K) -> None:
        heapq.heappush(self._heap, (self._due[key], next(self._order), key))
        self._woken.set()

    async def _next(self) -> K:
        """Waits for the key that is due first, among those that nobody works on."""
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            wait: float | None = None
            while self._heap:
                due, _, key = self._heap[0]
                if self._due.get(key) != due or key in self._active:
                    heapq.heappop(self._heap)  # stale, or pushed again once its work is done
                    continue
                wait = due - loop.time()
                if wait <= 0:
                    heapq.heappop(self._heap)
                    del self._due[key]
                    self._active.add(key)
                    self._begun(loop.time() - max(due, self._since))
                    return key
                break
            await _wait(self._woken, wait)

    def _begun(self, late: float) -> None:
        if self._observer is not None:
            self._observer.begun(late)

    def _ended(self, seconds: float, failed: bool) -> None:
        if self._observer is not None:
            self._observer.ended(seconds, failed)

    async def _process(self, key: K) -> None:
        again: float | None
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            again = await self._work(key)
        except Exception:  # whatever one run meets, the work on the others goes on
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            # The exponent is bounded too: 2 to the power of a week's failures is no float any more.
            again = min(FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 16), LONGEST_BACKOFF_SECONDS)
            self._ended(clock() - began, failed=True)
            log.exception("%s failed %d times in a row; tried again in %.0f s", key, failures, again)
        else:
            self._failures.pop(key, None)
            self._ended(clock() - began, failed=False)
        finally:
            self._active.discard(key)
            self._free.release()
        if key in self._due:
            self._push(key)
        if again is not None:
            self.wake(key, again)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
