"""A deleted run's removal: what follows what, and, by a random walk, that nothing is removed too early."""

import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bitnet_crds import BitNetRun, BitNetRunStatus, TerminationReport, parse_run, plan
from bitnet_crds.protocol import Order
from bitnet_operator import segments
from bitnet_operator.backends import removal as removal_job
from bitnet_operator.conditions import condition
from bitnet_operator.decision import Decision
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Job, JobState, Observation, Pod
from bitnet_operator.removal import CONDITION, FINALIZER, abandoned, not_removed, removal
from small_run import START, small_document

CHECKPOINT = {"uri": "pvc://runs/here", "everySteps": 2, "onDelete": "Remove"}
ADDRESS = "pvc://runs/here/team/small"


def deleted(**spec: Any) -> dict[str, Any]:
    document = small_document(**{"checkpoint": CHECKPOINT, **spec})
    document["metadata"] |= {"deletionTimestamp": timestamp(START), "finalizers": [FINALIZER]}
    return document


def begun(run: BitNetRun) -> BitNetRunStatus:
    """The status of a run that trains."""
    ledger = plan(run.spec)
    return BitNetRunStatus(segments=(segments.next_segment(run, ledger, BitNetRunStatus(), START),))


@dataclass
class Scene:
    """A deleted run, which trained, under `removal`."""

    document: dict[str, Any] = field(default_factory=deleted)
    seconds: float = 0
    status: BitNetRunStatus | None = None

    @property
    def run(self) -> BitNetRun:
        return parse_run(self.document)

    @property
    def now(self) -> Any:
        return START + timedelta(seconds=self.seconds)

    def observation(self, **seen: Any) -> Observation:
        if self.status is None:
            self.status = begun(self.run)
        return Observation(self.document, self.status, deleting=True, **seen)

    def decide(self, **seen: Any) -> Decision:
        decision = removal(self.run, self.observation(**seen), self.now)
        self.status = decision.status
        return decision

    def job(self, state: JobState, *pods: Pod, message: str | None = None) -> Job:
        return Job("small-removal", state, message, pods, None, segments.removal_name(self.run))

    def said(self) -> tuple[str, str]:
        assert self.status is not None
        found = condition(self.status.conditions, CONDITION)
        assert found is not None
        return found.status, found.reason


def training(state: JobState = JobState.ACTIVE, running: bool = True) -> Job:
    return Job("small-0", state, None, (Pod("small-0-0", 0, running=running),))


def asked(decision: Decision) -> tuple[Any, ...]:
    return decision.delete, decision.removal, decision.held


def test_jobs_go_first_then_their_pods_and_then_what_the_run_keeps() -> None:
    scene = Scene()
    assert asked(scene.decide(jobs=(training(),))) == (("small-0",), None, None)
    assert scene.said() == ("False", "PodsStillRun")
    assert asked(scene.decide(jobs=(training(JobState.ENDING),))) == ((), None, None)
    assert asked(scene.decide(left_over=("small-0-1",))) == ((), None, None)
    assert scene.said() == ("False", "PodsStillRun")
    decision = scene.decide()
    assert asked(decision) == ((), True, None)
    assert scene.said() == ("False", "Removing")
    assert asked(scene.decide(removal=scene.job(JobState.ACTIVE))) == ((), None, None)
    done = TerminationReport(exit_code=0, reason="Succeeded", message=f"there was nothing at {ADDRESS}")
    decision = scene.decide(removal=scene.job(JobState.SUCCEEDED, Pod("p", 0, exit_code=0, report=done)))
    assert asked(decision) == ((), False, False)
    assert scene.said() == ("True", "Removed")
    (event,) = decision.events
    assert (event.type, event.message) == ("Normal", f"there was nothing at {ADDRESS}")


def test_a_run_with_ended_jobs_alone_waits_for_nothing() -> None:
    assert asked(Scene().decide(jobs=(training(JobState.SUCCEEDED, running=False),))) == ((), True, None)


def test_a_run_whose_policy_was_turned_to_keep_goes_at_once() -> None:
    scene = Scene(deleted(checkpoint=CHECKPOINT | {"onDelete": "Keep"}))
    for seen in ({}, {"jobs": (training(),)}, {"removal": scene.job(JobState.ACTIVE)}):
        assert asked(scene.decide(**seen)) == ((), False, False)


def test_a_run_that_never_began_has_nothing_to_remove() -> None:
    """So one whose template no pod can be made from is not held for ever."""
    scene = Scene(status=BitNetRunStatus())
    assert asked(scene.decide()) == ((), None, False)
    scene = Scene(status=BitNetRunStatus())
    # Made by an operator that died before it wrote that down.
    assert asked(scene.decide(jobs=(training(),))) == (("small-0",), None, None)
    assert asked(scene.decide()) == ((), True, None)


def test_a_failed_removal_is_told_and_tried_again_after_waits_that_grow() -> None:
    scene, waits = Scene(), []
    said = TerminationReport(
        exit_code=6, reason="CheckpointUnavailable", message="may not be written; mend it"
    )
    failed = scene.job(JobState.FAILED, Pod("small-removal-x", 0, exit_code=6, report=said))
    for _ in range(8):
        assert asked(scene.decide()) == ((), True, None)
        scene.seconds += 60
        decision = scene.decide(removal=failed)
        assert asked(decision) == ((), None, None)
        (event,) = decision.events
        assert (event.type, event.reason) == ("Warning", "RemovalFailed")
        for words in ("small-removal-x: may not be written; mend it", "onDelete to Keep", FINALIZER):
            assert words in event.message
        assert decision.wake_after is not None
        waits.append(decision.wake_after)
        # Its pods stay, and nothing more is said, until the next try.
        scene.seconds += decision.wake_after - 1
        quiet = scene.decide(removal=failed)
        assert (asked(quiet), quiet.events, quiet.wake_after) == (((), None, None), (), 1)
        assert asked(scene.decide()) == ((), None, None)  # not even where it is gone
        scene.seconds += 1
        assert asked(scene.decide(removal=failed)) == ((), False, None)
    assert waits == [60, 180, 420, 900, 1860, 3600, 3600, 3600]


def test_a_removal_whose_pod_never_came_up_says_what_it_waited_for() -> None:
    scene = Scene()
    pending = Pod("small-removal-x", 0, waiting="Unschedulable: no node")
    scene.decide(removal=scene.job(JobState.ACTIVE, pending))
    assert scene.said() == ("False", "PodWaits")
    late = scene.job(JobState.FAILED, message="Job was active longer than specified deadline")
    (event,) = scene.decide(removal=late).events
    assert "longer than specified deadline" in event.message
    assert "Unschedulable: no node" in event.message


def test_a_job_that_the_server_refuses_is_tried_again_at_once_when_the_run_was_mended() -> None:
    scene = Scene()
    decision = not_removed(scene.observation(), "spec.template: Invalid value", scene.now)
    scene.status = decision.status
    assert (decision.wake_after, decision.events[0].reason) == (10, "RemovalFailed")
    assert asked(scene.decide()) == ((), None, None)
    scene.document["metadata"]["generation"] += 1
    assert asked(scene.decide()) == ((), True, None)
    assert scene.status.retry_at is None


def test_a_retry_that_training_waited_for_holds_no_removal_up() -> None:
    scene = Scene()
    scene.status = begun(scene.run).model_copy(update={"retry_at": timestamp(START + timedelta(hours=1))})
    assert asked(scene.decide()) == ((), True, None)
    assert scene.status.retry_at is None


@pytest.mark.parametrize("state", [JobState.ACTIVE, JobState.FAILED, JobState.SUCCEEDED])
def test_a_job_of_another_run_or_of_another_template_is_made_anew(state: JobState) -> None:
    scene = Scene()
    job = scene.job(state)
    changed = copy.deepcopy(scene.document)
    changed["spec"]["workers"] |= {"template": {"spec": {"nodeSelector": {"disk": "fast"}}}}
    namesake = copy.deepcopy(scene.document)
    namesake["metadata"]["uid"] = "u-2"
    for document in (changed, namesake):
        assert asked(Scene(document).decide(removal=job)) == ((), False, None)
    assert asked(Scene(changed).decide(removal=replace(job, state=JobState.ENDING))) == ((), None, None)


def test_what_cannot_be_removed_any_more_is_told_and_the_run_goes() -> None:
    decision = abandoned(Scene().observation(), "namespace team is being deleted")
    assert asked(decision) == ((), None, False)
    assert decision.events[0].message == (
        "what the run keeps at pvc://runs/here stays there: namespace team is being deleted"
    )
    assert abandoned(Observation({"spec": None}, BitNetRunStatus()), "why").held is False


class Walk(RuleBasedStateMachine):
    """Everything that can happen to a deleted run, in any order."""

    @initialize(jobs=st.integers(0, 2), left_over=st.booleans())
    def begins(self, jobs: int, left_over: bool) -> None:
        self.scene = Scene()
        self.jobs = {f"small-{index}": JobState.ACTIVE for index in range(jobs)}
        self.left_over = ("small-9-0",) if left_over else ()
        self.removal: Job | None = None
        self.removed = self.released = self.kept = False

    @property
    def pods(self) -> bool:
        return bool(self.jobs or self.left_over)

    @precondition(lambda self: not self.released)
    @rule(dies=st.booleans())
    def operator_looks(self, dies: bool) -> None:
        jobs = tuple(Job(name, state, None, ()) for name, state in self.jobs.items())
        seen = {"jobs": jobs, "left_over": self.left_over, "removal": self.removal}
        decision = removal(self.scene.run, self.scene.observation(**seen), self.scene.now)
        for name in decision.delete:
            self.jobs[name] = JobState.ENDING
        if decision.removal and self.removal is None:
            assert not self.pods, "what pods still write was to be removed"
            self.removal = self.scene.job(JobState.ACTIVE)
        if decision.removal is False and self.removal is not None:
            self.removal = replace(self.removal, state=JobState.ENDING)
        if dies:
            return
        self.scene.status = decision.status
        if decision.held is False:
            assert self.removed or self.kept, "let go with what it keeps"
            self.released = True

    @rule(seconds=st.sampled_from([1, 30, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.scene.seconds += seconds

    @precondition(lambda self: self.pods)
    @rule()
    def pods_end(self) -> None:
        self.jobs = {name: state for name, state in self.jobs.items() if state is not JobState.ENDING}
        self.left_over = ()

    @precondition(lambda self: self.removal is not None)
    @rule(how=st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, None]))
    def removal_ends(self, how: JobState | None) -> None:
        assert self.removal is not None
        if self.removal.state is JobState.ENDING or how is None:
            self.removal = None  # somebody deleted it
        elif self.removal.state is JobState.ACTIVE:
            self.removed = self.removed or how is JobState.SUCCEEDED
            self.removal = replace(self.removal, state=how)

    @precondition(lambda self: self.removal is None)
    @rule()
    def a_person_keeps_it(self) -> None:
        self.scene.document["spec"]["checkpoint"] = CHECKPOINT | {"onDelete": "Keep"}
        self.scene.document["metadata"]["generation"] += 1
        self.kept = True

    @invariant()
    def jobs_are_deleted_before_anything_is_removed(self) -> None:
        if getattr(self, "removal", None) is not None:
            assert not self.pods

    def teardown(self) -> None:
        """Left alone, it comes to its end."""
        if not hasattr(self, "scene"):
            return
        for _ in range(20):
            if self.released:
                return
            self.operator_looks(dies=False)
            self.pods_end()
            if self.removal is not None:
                self.removal_ends(JobState.SUCCEEDED)
            self.scene.seconds += 4000
        assert self.released


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestWalk = Walk.TestCase


TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}},
    "spec": {
        "serviceAccountName": "trainer",
        "nodeSelector": {"disk": "fast"},
        "resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}],
        "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
        "initContainers": [
            {
                "name": "proxy",
                "image": "proxy",
                "restartPolicy": "Always",
                "resources": {"limits": {"rdma/ib": 1, "cpu": 1}, "claims": [{"name": "gpu"}]},
            }
        ],
        "containers": [
            {
                "name": "pytorch",
                "image": "mine:1",
                "command": ["bash"],
                "resources": {"limits": {"memory": "900Gi"}, "claims": [{"name": "gpu"}]},
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": 9400}},
                "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            },
            {"name": "beside", "image": "never ends"},
        ],
    },
}


def removing(**spec: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    run = parse_run(deleted(**spec))
    (_, config_map), (_, job) = removal_job.manifests(run, plan(run.spec), "trainer:1")
    return config_map, job


def test_its_pod_is_the_runs_own_without_gpus() -> None:
    workers = {"count": 2, "gpusPerWorker": 8, "microBatchSize": 2, "template": TEMPLATE}
    budget = {"tokens": 16 * 32 * 10, "globalBatchSize": 32}
    sources = [{"name": "text", "uri": "pvc://text/all"}]
    data = {"sequenceLength": 16, "sources": sources}
    _, job = removing(workers=workers, budget=budget, data=data)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "bitnet_trainer.remove"]
    assert container["image"] == "mine:1"
    assert {each["name"]: each for each in container["env"]}["KEY"]["valueFrom"]
    assert "nvidia.com/gpu" not in str(job)
    assert "claims" not in str(job)
    assert "livenessProbe" not in container
    assert "900Gi" not in str(job)
    assert pod["initContainers"][0]["resources"] == {"limits": {"cpu": 1}}
    assert (pod["serviceAccountName"], pod["nodeSelector"]) == ("trainer", {"disk": "fast"})
    assert pod["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in pod["volumes"]}
    # The text's claim may be gone already.
    assert {"order", "cache", "claim-runs"} <= volumes
    assert "claim-text" not in volumes
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_a_person_hears_why_nothing_is_removed_after_one_pod_more() -> None:
    _, job = removing()
    assert job["spec"]["backoffLimit"] == 1


def test_neither_job_nor_order_goes_with_the_run() -> None:
    for manifest in removing():
        assert "ownerReferences" not in manifest["metadata"]
        assert manifest["metadata"]["labels"]["bitnet.training/run"] == "small"
        assert manifest["metadata"]["annotations"]["bitnet.training/pods"]
    config_map, job = removing()
    mounted = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}["order"]
    assert mounted["configMap"]["name"] == config_map["metadata"]["name"] == "small-removal-order"
    order = Order.model_validate_json(config_map["data"]["order.json"])
    assert (order.address, order.job) == (ADDRESS, "small-removal")
