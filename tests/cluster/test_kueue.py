"""Runs that a real Kueue gives pods to, takes them from, and gives them back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local_cluster import Kubectl, Network
from local_cluster.kueue import kueue
from runs import Document, WatchedRun

pytestmark = pytest.mark.kueue

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
VERSION = "kueue.x-k8s.io/v1beta2"


@pytest.fixture(scope="module", autouse=True)
def kueue_at_work(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kueue, and the priority `urgent`."""
    with kueue(kubectl, tmp_path_factory.mktemp("kueue"), Network()):
        kubectl.apply(
            {
                "apiVersion": VERSION,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": "urgent"},
                "value": 1000,
            }
        )
        yield


@dataclass(frozen=True)
class Queue:
    """A queue of the test's namespace, and the quota behind it."""

    kubectl: Kubectl
    name: str

    def change(self, pods: int, stop_policy: str = "None") -> None:
        """So many pods may run at once; `HoldAndDrain` takes them from who has them."""
        quota = {"name": "any", "resources": [{"name": "pods", "nominalQuota": pods}]}
        self.kubectl.apply(
            {
                "apiVersion": VERSION,
                "kind": "ClusterQueue",
                "metadata": {"name": self.name},
                "spec": {
                    "namespaceSelector": {},
                    "preemption": {"withinClusterQueue": "LowerPriority"},
                    "resourceGroups": [{"coveredResources": ["pods"], "flavors": [quota]}],
                    "stopPolicy": stop_policy,
                },
            }
        )


@pytest.fixture
def queue(kubectl: Kubectl, namespace: str) -> Queue:
    """A queue whose quota is no pod yet."""
    made = Queue(kubectl, namespace)
    kubectl.apply({"apiVersion": VERSION, "kind": "ResourceFlavor", "metadata": {"name": "any"}})
    made.change(pods=0)
    kubectl.apply(
        {
            "apiVersion": VERSION,
            "kind": "LocalQueue",
            "metadata": {"name": made.name, "namespace": namespace},
            "spec": {"clusterQueue": made.name},
        }
    )
    return made


def is_queued(status: Document) -> bool:
    """Whether its condition says that it waits for its queue."""
    running = [each for each in status.get("conditions", []) if each["type"] == "Running"]
    return [(each["status"], each["reason"]) for each in running] == [("False", "Queued")]


def test_a_run_waits_for_its_quota_and_goes_on_when_it_was_taken_and_given_back(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any], queue: Queue
) -> None:
    run = start("queued", steps=2000, backend="Job", labels={QUEUE: queue.name})
    run.wait_until(is_queued, "waiting for the quota")
    assert run.pods() == []
    with watched(run) as steps:
        queue.change(pods=2)
        run.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        queue.change(pods=2, stop_policy="HoldAndDrain")
        before = run.wait_until(is_queued, "being without its quota")
        pods_end(run)
        queue.change(pods=2)
        status = run.wait_until(lambda status: status["step"] > before["step"] + 10, "going on")
    assert (run.jobs(), status["attempts"], len(status["segments"])) == (["queued-0"], 0, 1)
    assert steps.repeated == 0


def test_a_run_makes_way_for_a_more_urgent_one_and_goes_on_after_it(
    start: Callable[..., WatchedRun], watched: Callable[[WatchedRun], Any], queue: Queue
) -> None:
    queue.change(pods=1)
    slow = start("slow", steps=2000, labels={QUEUE: queue.name}, workers={"count": 1})
    with watched(slow) as steps:
        slow.wait_until(lambda status: status.get("step", 0) >= 5, "first steps")
        labels = {QUEUE: queue.name, PRIORITY: "urgent"}
        urgent = start("urgent", steps=10, labels=labels, workers={"count": 1})
        before = slow.wait_until(is_queued, "making way")
        urgent.succeeded()
        status = slow.wait_until(lambda status: status["step"] > before["step"] + 10, "going on")
    assert status["attempts"] == 0
    assert steps.repeated == 0


def pods_end(run: WatchedRun, seconds: float = 60) -> None:
    """Waits until the run has no pods."""
    deadline = time.monotonic() + seconds
    while run.pods():
        assert time.monotonic() < deadline, json.dumps(run.pods())
        time.sleep(0.5)
