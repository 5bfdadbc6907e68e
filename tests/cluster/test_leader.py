"""Two operators on a real cluster: one leads; killed, stopped or frozen, the other goes on as if alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_cluster import Kubectl
from operator_under_test import NAMESPACE, RELEASE, OperatorProcess, install_chart
from runs import TINY_MODEL, WatchedRun, pod_template, run_document, said_of

pytestmark = pytest.mark.cluster

LEASE_SECONDS = 15


class Pair:
    """Two replicas: the one that leads now, and the other."""

    def __init__(self, kubectl: Kubectl, *replicas: OperatorProcess) -> None:
        self._kubectl = kubectl
        self.replicas = replicas

    def holder(self) -> str:
        """Identity in the lease; empty where nobody holds it."""
        return str(self._kubectl.get("lease", RELEASE, "-n", NAMESPACE)["spec"].get("holderIdentity", ""))

    def leader(self, seconds: float = 60) -> OperatorProcess:
        """The replica that says that it leads; fails where both do."""
        deadline = time.monotonic() + seconds
        while True:
            leading = [replica for replica in self.replicas if replica.role() == "leader"]
            assert len(leading) <= 1
            if leading:
                return leading[0]
            assert time.monotonic() < deadline, "nobody leads"
            time.sleep(0.1)

    def standby(self) -> OperatorProcess:
        """The other one."""
        (other,) = (replica for replica in self.replicas if replica.role() == "standby")
        return other


@pytest.fixture
def pair(kubectl: Kubectl, checkout: Path, tmp_path: Path) -> Iterator[Pair]:
    """Two replicas at work, under the chart's rights."""
    install_chart(kubectl, checkout)
    replicas = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        replicas.append(OperatorProcess(kubectl, tmp_path / name))
    try:
        for replica in replicas:
            replica.start()
        yield Pair(kubectl, *replicas)
    finally:
        for replica in replicas:
            replica.stop()
    for replica in replicas:
        assert replica.tracebacks() == []


@pytest.fixture
def begin(
    kubectl: Kubectl, namespace: str, checkout: Path, data: Path, pair: Pair
) -> Callable[[int], WatchedRun]:
    """Applies a run of so many steps, five in two seconds, and returns once it trains."""

    def apply(steps: int) -> WatchedRun:
        pair.leader()
        checkpoint = {"uri": f"file:///data/runs-{namespace}", "everySteps": 10, "keep": 2}
        template = pod_template(checkout, data, {"STEP_SECONDS": "0.4"})
        document = run_document(
            "led", template, steps=steps, model=TINY_MODEL, checkpoint=checkpoint, workers={"count": 1}
        )
        kubectl.apply({**document, "metadata": {"name": "led", "namespace": namespace}})
        run = WatchedRun(kubectl, namespace, "led")
        run.wait_until(lambda status: status.get("step", 0) >= 1, "first step")
        return run

    return apply


def assert_nothing_doubled(run: WatchedRun) -> None:
    """The run went on to its end as if one operator had led all the time."""
    status = run.succeeded()
    assert run.jobs() == ["led-0"]
    assert said_of(status["segments"]) == [("Start", "Completed"), ("TeacherPhase", "Completed")]
    assert status["segments"][0]["lastStep"] == status["segments"][1]["firstStep"]
    assert [event["reason"] for event in run.events()] == ["Start", "TeacherPhase", "Succeeded"]


def test_a_killed_leader_is_followed_within_the_lease(pair: Pair, begin: Callable[[int], WatchedRun]) -> None:
    run = begin(70)
    leader, standby = pair.leader(), pair.standby()
    before = run.status()["step"]
    leader.stop(signal.SIGKILL)
    began = time.monotonic()
    assert pair.leader() is standby
    took_over = time.monotonic() - began
    run.wait_until(lambda status: status["step"] > before, "steps seen again")
    print(
        f"\nkilled: another leads after {took_over:.1f} s, a step seen after {time.monotonic() - began:.1f} s"
    )
    assert took_over < LEASE_SECONDS + 4
    assert_nothing_doubled(run)


def test_a_leader_that_stops_gives_the_lease_up(pair: Pair, begin: Callable[[int], WatchedRun]) -> None:
    run = begin(30)
    leader, standby = pair.leader(), pair.standby()
    began = time.monotonic()
    leader.send(signal.SIGTERM)
    while standby.role() != "leader":
        assert time.monotonic() - began < LEASE_SECONDS, "nobody leads"
        time.sleep(0.1)
    took_over = time.monotonic() - began
    assert leader.ended(30) == 0
    print(f"\nstopped: another leads after {took_over:.1f} s")
    assert took_over < 5
    leader.start()
    assert leader.role() == "standby"
    assert_nothing_doubled(run)


def test_a_leader_that_was_frozen_writes_nothing_more_and_ends(
    pair: Pair, begin: Callable[[int], WatchedRun], kubectl: Kubectl, namespace: str
) -> None:
    run = begin(70)
    leader, standby = pair.leader(), pair.standby()
    leader.send(signal.SIGSTOP)
    began = time.monotonic()
    assert pair.leader() is standby
    took_over = time.monotonic() - began
    assert took_over < LEASE_SECONDS + 4
    # With the other frozen in turn, whoever writes now is the one that has lost the lease.
    standby.send(signal.SIGSTOP)
    try:
        version = kubectl.get("bnr", "led", "-n", namespace)["metadata"]["resourceVersion"]
        lease = kubectl.get("lease", RELEASE, "-n", NAMESPACE)["metadata"]["resourceVersion"]
        leader.send(signal.SIGCONT)
        woke = time.monotonic()
        assert leader.ended(30) == 1
        ended = time.monotonic() - woke
        assert kubectl.get("bnr", "led", "-n", namespace)["metadata"]["resourceVersion"] == version
        assert kubectl.get("lease", RELEASE, "-n", NAMESPACE)["metadata"]["resourceVersion"] == lease
    finally:
        standby.send(signal.SIGCONT)
    assert_nothing_doubled(run)
    print(f"\nfrozen: another leads after {took_over:.1f} s, the first ended {ended:.1f} s after it went on")
    assert "the lease was lost" in leader.log()
