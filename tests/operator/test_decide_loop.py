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
TUNING_STEPS = 5


def document(resize: str, rollbacks: int, *, tunes: bool = False) -> dict[str, Any]:
    tune = {"tune": {"tokens": 16 * 8 * TUNING_STEPS}} if tunes else {}
    return small_document(
        budget={"tokens": 16 * 8 * 20, "globalBatchSize": 8},
        workers=WORKERS,
        teacher={"from": "file:///models/teacher", "resize": resize, **tune},
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
        tunes=st.sampled_from([False, False, True]),
        slow=st.booleans(),
    )
    def begins(self, bad_batches: set[int], fitting: int, resize: str, tunes: bool, slow: bool) -> None:
        self.cluster = SimulatedCluster(document(resize, 3, tunes=tunes), bad_batches, fitting)
        self.cluster.slow = slow
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

    @rule(workers=st.sampled_from([WORKERS, ONE_WORKER]))
    def it_dies_when_it_has_made_a_job_and_workers_are_changed(self, workers: dict[str, Any]) -> None:
        if self.job is not None:
            self.cluster.crash(self.job, ExitCode.CRASHED)
        self.cluster.look()
        self.cluster.passes(700)
        self.cluster.look(dies=True)
        self.cluster.edit(workers=workers)
        self.cluster.look()

    @rule(seconds=st.sampled_from([1, 15, 61, 700]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.passes(seconds)

    @rule(steps=st.integers(1, 12))
    def all_goes_on(self, steps: int) -> None:
        for _ in range(2):
            self.cluster.look()
            if (job := self.job) is not None:
                self.cluster.hear(job)
                self.cluster.train(job, steps)
                self.cluster.catch_up(job)
            self.cluster.passes(30)
            self.cluster.look()

    # The pods.

    @precondition(lambda self: self.job is not None)
    @rule(steps=st.integers(1, 6))
    def pods_train(self, steps: int) -> None:
        assert self.job is not None
        self.cluster.train(self.job, steps)

    @rule()
    def controllers_catch_up(self) -> None:
        for job in self.cluster.jobs.values():
            self.cluster.catch_up(job)

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

    @rule(times=st.integers(2, 4), code=st.sampled_from([ExitCode.CRASHED, ExitCode.PEER_LOST]))
    def pods_fail_in_a_row(self, times: int, code: ExitCode) -> None:
        for _ in range(times):
            self.cluster.look()
            self.cluster.passes(700)
            self.cluster.look()
            if self.job is not None:
                self.cluster.crash(self.job, code)

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data(), orphans=st.booleans())
    def removal_is_over(self, data: st.DataObject, orphans: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.cluster.jobs)))
        self.cluster.finish_removal(name, orphans=orphans)

    @precondition(lambda self: self.cluster.orphans)
    @rule()
    def pods_that_were_left_behind_end(self) -> None:
        self.cluster.end_orphans()

    # People.

    @rule(suspend=st.booleans())
    def a_person_suspends(self, suspend: bool) -> None:
        self.cluster.edit(suspend=suspend)

    @rule(workers=st.sampled_from([WORKERS, ONE_WORKER]))
    def a_person_changes_workers(self, workers: dict[str, Any]) -> None:
        self.cluster.edit(workers=workers)

    @precondition(lambda self: self.cluster.jobs)
    @rule(data=st.data(), at_once=st.booleans())
    def a_person_deletes_a_job(self, data: st.DataObject, at_once: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.cluster.jobs)))
        self.cluster.remove(name)
        if at_once:
            self.cluster.finish_removal(name, orphans=True)

    @precondition(lambda self: self.job is not None and self.job.state.live)
    @rule(held=st.booleans())
    def the_queue_takes_pods_or_gives_them(self, held: bool) -> None:
        assert self.job is not None
        if held and self.job.state is JobState.ACTIVE and self.job.trained is not None:
            self.cluster.commit(self.job)  # at SIGTERM
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
        jobs = (*self.cluster.jobs.values(), *self.cluster.orphans.values())
        assert sum(job.pods for job in jobs) <= 1

    @invariant()
    def jobs_are_counted(self) -> None:
        jobs = dict.fromkeys(segment.job for segment in self.cluster.status.segments)
        assert list(jobs) == [f"small-{index}" for index in range(len(jobs))]

    @invariant()
    def nothing_is_tried_beyond_its_limit(self) -> None:
        status = self.cluster.status
        assert status.attempts <= 3
        in_a_row, began = 0, dict[str, int]()
        for segment in status.segments:
            began.setdefault(segment.job, segment.first_step)
            if (segment.checkpoint_step or 0) > began[segment.job]:
                in_a_row = 0
            if segment.outcome is SegmentOutcome.FAILED and segment.then in (None, SegmentReason.RETRY):
                in_a_row += segment.exit_reason != "OutOfMemory"
        assert in_a_row <= 3
        passed_over = [
            rollback.first_batch + index
            for rollback in status.adjustments.rollbacks
            for index in range(rollback.batches)
        ]
        assert len(passed_over) == len(set(passed_over)) == len(status.adjustments.rollbacks)
        assert set(passed_over) <= self.cluster.bad_batches
        assert all(times <= LARGEST_HALVINGS for times in status.adjustments.halvings.values())

    @invariant()
    def a_segment_begins_where_a_checkpoint_is_or_a_phase(self) -> None:
        status = self.cluster.status
        kept = {0, *(len(trained) for trained in self.cluster.disk)}
        for before, segment in zip((None, *status.segments), status.segments, strict=False):
            in_place = before is not None and before.job == segment.job
            assert segment.shape.global_batch_size == 8
            if segment.purpose == "TuneTeacher":
                assert segment.first_step <= self.cluster.tuned <= segment.end_step == TUNING_STEPS
                continue
            assert in_place or segment.first_step in kept
            assert not self.cluster.plan.tuning or self.cluster.tuned == TUNING_STEPS

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
        cluster.slow = False
        self.controllers_catch_up()
        for _ in range(400):
            if cluster.status.phase.ended:
                break
            cluster.look()
            cluster.end_orphans()
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
            assert cluster.status.attempts == 3 or last.exit_reason == "OutOfMemory", last


Life.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLife = Life.TestCase
