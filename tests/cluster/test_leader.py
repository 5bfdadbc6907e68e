"""Two operators on a real cluster: one leads; killed, stopped or frozen, the other goes on as if alone."""

from __future__ import annotations

import signal
import time
import uuid
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
        """The other one, once it says that it stands by."""
        deadline = time.monotonic() + 30
        while True:
            for replica in self.replicas:
                if replica.role() == "standby":
                    return replica
            assert time.monotonic() < deadline, "nobody stands by"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(kubectl: Kubectl, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two replicas at work, under the chart's rights. Each test leaves a leader and a standby."""
    install_chart(kubectl, checkout)
    replicas = [OperatorProcess(kubectl, tmp_path_factory.mktemp("operator")) for _ in range(2)]
    try:
        for replica in replicas:
            replica.start()
        yield Pair(kubectl, *replicas)
    finally:
        for replica in replicas:
            replica.stop()
    for replica in replicas:
        assert replica.tracebacks() == []


@pytest.fixture(scope="module")
def run(kubectl: Kubectl, checkout: Path, data: Path, pair: Pair) -> Iterator[WatchedRun]:
    """A run that trains while leaders come and go."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", namespace)
    pair.leader()
    checkpoint = {"uri": f"file:///data/runs-{namespace}", "everySteps": 10, "keep": 2}
    document = run_document(
        "led",
        pod_template(checkout, data),
        steps=4000,
        model=TINY_MODEL,
        checkpoint=checkpoint,
        workers={"count": 1},
    )
    kubectl.apply({**document, "metadata": {"name": "led", "namespace": namespace}})
    led = WatchedRun(kubectl, namespace, "led")
    led.wait_until(lambda status: status.get("step", 0) >= 1, "first step")
    yield led
    kubectl("delete", "namespace", namespace, "--wait=false")


def assert_nothing_doubled(run: WatchedRun) -> None:
    """The run goes on as if one operator had led all the time."""
    before = run.status()["step"]
    status = run.wait_until(lambda status: status["step"] > before, "steps seen again")
    assert run.jobs() == ["led-0"]
    assert said_of(status["segments"]) == [("Start", "Running")]
    assert [event["reason"] for event in run.events()] == ["Start"]


def test_a_leader_that_stops_gives_the_lease_up(
    pair: Pair, run: WatchedRun, measured: Callable[[str], None]
) -> None:
    leader, standby = pair.leader(), pair.standby()
    began = time.monotonic()
    leader.send(signal.SIGTERM)
    while standby.role() != "leader":
        assert time.monotonic() - began < LEASE_SECONDS, "nobody leads"
        time.sleep(0.1)
    took_over = time.monotonic() - began
    assert leader.ended(30) == 0
    measured(f"another leads after {took_over:.1f} s; the run trains on in its pods")
    assert took_over < 5
    leader.start()
    assert pair.standby() is leader
    assert_nothing_doubled(run)


def test_a_killed_leader_is_followed_within_the_lease(
    pair: Pair, run: WatchedRun, measured: Callable[[str], None]
) -> None:
    leader, standby = pair.leader(), pair.standby()
    leader.stop(signal.SIGKILL)
    began = time.monotonic()
    assert pair.leader() is standby
    took_over = time.monotonic() - began
    assert_nothing_doubled(run)
    measured(
        f"another leads after {took_over:.1f} s and has seen a step after {time.monotonic() - began:.1f} s; "
        "the run trains on in its pods"
    )
    assert took_over < LEASE_SECONDS + 4
    leader.start()


def test_a_leader_that_was_frozen_writes_nothing_more_and_ends(
    pair: Pair, run: WatchedRun, kubectl: Kubectl, measured: Callable[[str], None]
) -> None:
    leader, standby = pair.leader(), pair.standby()
    leader.send(signal.SIGSTOP)
    began = time.monotonic()
    assert pair.leader() is standby
    took_over = time.monotonic() - began
    assert took_over < LEASE_SECONDS + 4
    # With the other frozen in turn, whoever writes now is the one that has lost the lease.
    standby.send(signal.SIGSTOP)
    try:
        version = kubectl.get("bnr", run.name, "-n", run.namespace)["metadata"]["resourceVersion"]
        lease = kubectl.get("lease", RELEASE, "-n", NAMESPACE)["metadata"]["resourceVersion"]
        leader.send(signal.SIGCONT)
        woke = time.monotonic()
        assert leader.ended(30) == 1
        ended = time.monotonic() - woke
        now = kubectl.get("bnr", run.name, "-n", run.namespace)["metadata"]["resourceVersion"]
        assert now == version
        assert kubectl.get("lease", RELEASE, "-n", NAMESPACE)["metadata"]["resourceVersion"] == lease
    finally:
        standby.send(signal.SIGCONT)
    measured(f"another leads after {took_over:.1f} s, the first ended {ended:.1f} s after it went on")
    assert "the lease was lost" in leader.log()
    leader.start()
    assert_nothing_doubled(run)
