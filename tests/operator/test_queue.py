"""The work queue: what kubernetes' controllers promise of theirs."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bitnet_operator import queue as queue_module
from bitnet_operator.queue import WorkQueue


@asynccontextmanager
async def running(
    work: Callable[[str], Awaitable[float | None]], **options: Any
) -> AsyncIterator[WorkQueue[str]]:
    """A queue at work, until the block ends."""
    queue = WorkQueue(work, **options)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settle(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_woken_key_is_worked_on_once() -> None:
    seen: list[str] = []

    async def work(key: str) -> None:
        seen.append(key)

    async with running(work) as queue:
        queue.wake("a")
        queue.wake("a")
        queue.wake("b")
        await settle(lambda: len(seen) == 2)
        await asyncio.sleep(0.02)
    assert sorted(seen) == ["a", "b"]


async def test_a_key_is_never_in_two_hands_and_wakeups_meanwhile_fold_into_one_more_run() -> None:
    at_work, most, runs = 0, 0, 0
    gate = asyncio.Event()

    async def work(_key: str) -> None:
        nonlocal at_work, most, runs
        at_work += 1
        most = max(most, at_work)
        runs += 1
        await gate.wait()
        at_work -= 1

    async with running(work) as queue:
        queue.wake("a")
        await settle(lambda: runs == 1)
        for _ in range(10):
            queue.wake("a")
        await asyncio.sleep(0.02)
        gate.set()
        await settle(lambda: runs == 2)
        await asyncio.sleep(0.02)
    assert (most, runs) == (1, 2)


async def test_different_keys_are_worked_on_side_by_side_up_to_the_limit() -> None:
    at_work: set[str] = set()
    most = 0
    gate = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal most
        at_work.add(key)
        most = max(most, len(at_work))
        await gate.wait()
        at_work.discard(key)

    async with running(work, concurrency=3) as queue:
        for index in range(6):
            queue.wake(str(index))
        await settle(lambda: len(at_work) == 3)
        await asyncio.sleep(0.02)
        gate.set()
        await settle(lambda: not at_work)
    assert most == 3


async def test_an_earlier_wakeup_wins_over_a_later_one() -> None:
    seen: list[float] = []
    loop = asyncio.get_running_loop()

    async def work(_key: str) -> None:
        seen.append(loop.time())

    async with running(work) as queue:
        begin = loop.time()
        queue.wake("a", after=30)
        queue.wake("a", after=0.05)
        queue.wake("a", after=10)
        await settle(lambda: bool(seen))
        await asyncio.sleep(0.05)
    assert len(seen) == 1
    assert seen[0] - begin >= 0.05


async def test_the_seconds_that_work_returns_are_waited_before_the_next_run() -> None:
    seen: list[float] = []

    async def work(_key: str) -> float | None:
        seen.append(asyncio.get_running_loop().time())
        return 0.05 if len(seen) < 3 else None

    async with running(work) as queue:
        queue.wake("a")
        await settle(lambda: len(seen) == 3)
        await asyncio.sleep(0.1)
    assert len(seen) == 3
    assert all(later - earlier >= 0.05 for earlier, later in itertools.pairwise(seen))


async def test_work_that_raises_is_tried_again_with_doubling_waits_and_hurts_no_other_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue_module, "FIRST_BACKOFF_SECONDS", 0.02)
    times: list[float] = []
    others: list[str] = []

    async def work(key: str) -> None:
        if key != "bad":
            others.append(key)
            return
        times.append(asyncio.get_running_loop().time())
        if len(times) < 4:
            raise RuntimeError("no answer")

    with caplog.at_level(logging.ERROR):
        async with running(work) as queue:
            queue.wake("bad")
            queue.wake("good")
            await settle(lambda: len(times) == 4)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits[0] >= 0.02
    assert waits[1] >= 0.04
    assert waits[2] >= 0.08
    assert others == ["good"]
    assert "bad failed 3 times in a row" in caplog.text


async def test_ten_thousand_keys_pass_through() -> None:
    seen: set[int] = set()

    async def work(key: int) -> None:
        seen.add(key)

    async with running(work) as queue:  # type: ignore[arg-type]
        for key in range(10_000):
            queue.wake(key)  # type: ignore[arg-type]
        await settle(lambda: len(seen) == 10_000)


async def test_a_key_that_fails_for_weeks_hurts_no_other_key(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def work(key: str) -> None:
        if key == "bad":
            raise RuntimeError("still no answer")
        seen.append(key)

    with caplog.at_level(logging.CRITICAL):
        async with running(work) as queue:
            queue._failures["bad"] = 5000
            queue.wake("bad")
            await settle(lambda: queue._failures["bad"] == 5001)
            queue.wake("good")
            await settle(lambda: seen == ["good"])


class Heard:
    """Notes what the queue says of itself."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.outcomes: list[bool] = []

    def begun(self, late: float) -> None:
        self.late.append(late)

    def ended(self, seconds: float, failed: bool) -> None:
        assert seconds >= 0
        self.outcomes.append(failed)


async def test_an_observer_hears_how_late_work_begins_and_how_it_ended() -> None:
    gate, heard = asyncio.Event(), Heard()

    async def work(key: str) -> None:
        await gate.wait()
        if key == "b":
            raise RuntimeError("no")

    async with running(work, concurrency=1, observer=heard) as queue:
        queue.wake("a")
        queue.wake("b")
        queue.wake("later", after=60)
        await settle(lambda: queue.length() == 1)
        await asyncio.sleep(0.1)
        gate.set()
        await settle(lambda: len(heard.outcomes) == 2)
        assert queue.length() == 0
    assert heard.outcomes == [False, True]
    assert heard.late[0] < 0.1 <= heard.late[1]


async def test_what_was_woken_while_nobody_worked_is_not_late() -> None:
    heard = Heard()

    async def work(_key: str) -> None: ...

    queue = WorkQueue[str](work, observer=heard)
    queue.wake("a")
    await asyncio.sleep(0.1)
    assert queue.length() == 0
    task = asyncio.create_task(queue.run())
    await settle(lambda: heard.outcomes == [False])
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert heard.late[0] < 0.05
