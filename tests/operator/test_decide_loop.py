"""The whole loop of `decide` against a cluster in memory, under whatever can happen to a run."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bitnet_crds import ExitCode, SegmentReason
from bitnet_crds.status import RunPhase, SegmentOutcome
from bitnet_operator.observation import JobState
from bitnet_operator.policies.out_of_memory import LARGEST_HALVINGS
from simulated_cluster import SimulatedCluster, SimulatedJob
from small_run import small_document

WORKERS = {"count": 2, "gpusPerWorker": 0, "microBatchSize": 2}
ONE_WORKER = WORKERS | {"count": 1}


def document(resize: str, rollbacks: int) -> dict[str, Any]:
    return small_document(
        budget={"tokens": 16 * 8 * 20, "globalBatchSize": 8},
        workers=WORKERS,
        teacher={"from": "file:///models/teacher", "resize": resize},
        checkpoint={"uri": "file:///runs", "everySteps": 3},
        health={"nonFinite": {"rollbacks": rollbacks}, "stallSeconds": 60},
        retries=2,
    )


class Life(RuleBasedStateMachine):
    """A random walk of everything that can happen, and what has to hold all the way."""

    @initialize(
        bad_batches=st.sets(st.integers(0, 19), max_size=2),
        fitting=st.sampled_from([1, 2]),
        resize=st.sampled_from(["InPlace", "Rescale"]),
    )
    def begins(self, bad_batches: set[int], fitting: int, resize: str) -> None:
        self.cluster = SimulatedCluster(document(resize, rollbacks=3), bad_batches, fitting)
        self.cluster.look()

    @property
    def job(self) -> SimulatedJob | None:
        """The job that trains, if one does."""
        return next((job for job in self.cluster.jobs.values() if job.pods), None)

    # The operator.

    @rule(dies=st.sampled_from([False, False, False, True]))
    def operator_looks(self, dies: bool) -> None:
        self.cluster.look(dies=dies)
        if self.cluster.status.phase.ended and not dies:
            live = [name for name, job in self.cluster.jobs.items() if job.state.live]
            assert not live, "a run that has ended holds no machine"

    @rule(seconds=st.sampled_from([1, 15, 61, 700]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.passes(seconds)

    # The pods.

    @precondition(lambda self: self.job is not None)
    @rule(steps=st.integers(1, 6))
    def pods_train(self, steps: int) -> None:
        assert self.job is not None
        self.cluster.train(self.job, steps)

    @precondition(lambda self: self.job is not None)
    @rule()
    def pods_hear(self) -> None:
        assert self.job is not None
        self.cluster.hear(self.job)

    @precondition(lambda self: self.job is not None)
    @rule()
    def pods_hang(self) -> None:
        assert self.job is not None
        self.job.answers = False

    @precondition(lambda self: self.job is not None)
    @rule(
        how=st.sampled_from(
            ["kill", "evict", "terminate", ExitCode.CRASHED, ExitCode.PEER_LOST, ExitCode.OUT_OF_MEMORY]
        )
    )
    def pods_end(self, how: str | ExitCode) -> None:
        assert self.job is not None
        match how:
            case "kill" | "evict":
                self.cluster.kill(self.job, evicted=how == "evict")
            case "terminate":
                self.cluster.stop(self.job)
            case ExitCode():
                self.cluster.crash(self.job, how)

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data())
    def removal_is_over(self, data: st.DataObject) -> None:
        self.cluster.finish_removal(data.draw(st.sampled_from(sorted(self.cluster.jobs))))

    # People.

    @rule(suspend=st.booleans())
    def a_person_suspends(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @rule(workers=st.sampled_from([WORKERS, ONE_WORKER]))
    def a_person_changes_workers(self, workers: dict[str, Any]) -> None:
        self.cluster.edit(workers=workers)

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data())
    def a_person_deletes_a_job(self, data: st.DataObject) -> None:
        self.cluster.remove(data.draw(st.sampled_from(sorted(self.cluster.jobs))))

    @precondition(lambda self: self.job is not None and self.job.state.live)
    @rule(held=st.booleans())
    def the_queue_takes_pods_or_gives_them(self, held: bool) -> None:
        assert self.job is not None
        if held and self.job.state is JobState.ACTIVE and self.job.trained is not None:
            self.cluster.disk.append(self.job.trained)  # at SIGTERM
            self.job.trained = None
        self.job.state = JobState.SUSPENDED if held else JobState.ACTIVE

    # What holds.

    @invariant()
    def one_segment_trains_and_it_is_the_last(self) -> None:
        *before, last = self.cluster.status.segments or (None,)
        assert all(segment.outcome is not SegmentOutcome.RUNNING for segment in before)
        assert [segment.index for segment in before] == list(range(len(before)))
        if self.cluster.status.phase in (RunPhase.SUCCEEDED, RunPhase.FAILED, RunPhase.SUSPENDED):
            assert last is None or last.outcome is not SegmentOutcome.RUNNING

    @invariant()
    def one_job_has_pods(self) -> None:
        assert sum(job.pods for job in self.cluster.jobs.values()) <= 1

    @invariant()
    def nothing_is_tried_beyond_its_limit(self) -> None:
        status = self.cluster.status
        assert status.attempts <= 3
        failed = [
            segment
            for segment in status.segments
            if segment.outcome is SegmentOutcome.FAILED and segment.then is SegmentReason.RETRY
        ]
        stuck = [
            segment for segment in failed if segment.checkpoint_step in (None, 0, failed[0].checkpoint_step)
        ]
        assert len(stuck) <= 3 or any(segment.checkpoint_step for segment in status.segments)
        assert len(status.adjustments.rollbacks) <= 3
        assert all(times <= LARGEST_HALVINGS for times in status.adjustments.halvings.values())

    @invariant()
    def a_segment_begins_where_a_checkpoint_is_or_a_phase(self) -> None:
        status = self.cluster.status
        kept = {0, *(len(trained) for trained in self.cluster.disk)}
        for before, segment in zip((None, *status.segments), status.segments, strict=False):
            in_place = before is not None and before.job == segment.job
            assert in_place or segment.first_step in kept
            assert segment.shape.global_batch_size == 8

    @invariant()
    def what_is_trained_is_the_ledgers_own(self) -> None:
        if self.cluster.status.phase is RunPhase.SUCCEEDED:
            plan = self.cluster.plan
            whole = tuple(plan.batch_at(step) for step in range(plan.end_step))
            assert whole in self.cluster.disk
            assert not self.cluster.bad_batches & set(whole)

    def teardown(self) -> None:
        """Left alone, the run goes to its end."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.edit(suspend=False)
        for _ in range(400):
            if cluster.status.phase.ended:
                break
            cluster.look()
            for name in list(cluster.jobs):
                cluster.finish_removal(name)
            if self.job is not None:
                if self.job.state is JobState.SUSPENDED:
                    self.job.state = JobState.ACTIVE
                cluster.hear(self.job)
            if self.job is not None and self.job.answers:
                cluster.train(self.job, 4)
            cluster.passes(20)
        assert cluster.status.phase.ended, cluster.status
        cluster.look()
        self.what_is_trained_is_the_ledgers_own()
        self.nothing_is_tried_beyond_its_limit()
        if cluster.status.phase is RunPhase.FAILED:
            last = cluster.status.segments[-1]
            spent = cluster.status.attempts == 3 or len(cluster.status.adjustments.rollbacks) == 3
            assert spent or last.exit_reason == "OutOfMemory", last


Life.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLife = Life.TestCase
