"""A cluster in memory for `decide`: jobs whose pods train by the order they got, a disk, and a clock.

What a checkpoint holds here is the list of global batches that were trained on, one a step: at the end it has
to be the ledger's own, no step lost and none twice.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bitnet_crds import (
    BitNetRunStatus,
    Checkpoint,
    ExitCode,
    Order,
    Progress,
    TerminationReport,
    parse_run,
    plan,
)
from bitnet_crds.plan import Plan
from bitnet_crds.protocol import PHASE_BOUNDARY, Fault, Told
from bitnet_operator.case import Settings
from bitnet_operator.decide import decide
from bitnet_operator.decision import Decision
from bitnet_operator.observation import Job, JobState, Observation, Pod
from bitnet_operator.segments import order_of, pods_of_order, told
from small_run import START

Trained = tuple[int, ...]
"""Global batches, in the order of the steps."""
NONE_OF_THE_RUNS = -1
"""The batch of a step of the teacher's tuning."""


@dataclass
class SimulatedJob:
    """A job and its pods, which are all up or all gone."""

    order: Order
    told: Told
    state: JobState = JobState.ACTIVE
    pods: bool = True
    """Whether its pods hold machines."""
    answers: bool = True
    trained: Trained | None = None
    """None until its pods have begun."""
    begun: int | None = None
    checkpoint: int | None = None
    words: dict[int, tuple[int, TerminationReport | None]] = field(default_factory=dict)
    """Exit code and report by rank, of pods that ended."""
    evicted: bool = False
    becomes: JobState | None = None
    """What it is once its controller has seen that its pods have ended."""

    @property
    def step(self) -> int:
        """Steps completed."""
        return len(self.trained or ())

    @property
    def tunes(self) -> bool:
        """Whether it tunes the teacher."""
        return self.order.purpose == "TuneTeacher"

    @property
    def trains(self) -> bool:
        """Whether its pods can take a step."""
        return self.pods and self.state is JobState.ACTIVE


class SimulatedCluster:
    """One run and its world. `bad_batches` are never finite; with the teacher in memory no more than
    `fitting` sequences fit."""

    def __init__(self, document: dict[str, Any], bad_batches: set[int], fitting: int) -> None:
        self.document = document
        self.bad_batches, self.fitting = bad_batches, fitting
        self.slow = False
        """Whether controllers of jobs lag behind their pods."""
        self.status = BitNetRunStatus()
        self.jobs: dict[str, SimulatedJob] = {}
        self.orphans: dict[str, SimulatedJob] = {}
        """Jobs that are gone while their pods are still on their way out."""
        self.disk: list[Trained] = []
        self.tuned = 0
        """Steps in the newest checkpoint of the teacher's tuning."""
        self.now: datetime = START
        self.settings = Settings(progress_interval=15, first_retry_delay=10)

    @property
    def plan(self) -> Plan:
        """The ledger, after what befell the run."""
        return plan(parse_run(self.document).spec, self.status.adjustments)

    # What a person and the world do.

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    def edit(self, **spec: Any) -> None:
        """A person changes these fields of the spec."""
        self.document["spec"] |= spec
        self.document["metadata"]["generation"] += 1

    def train(self, job: SimulatedJob, steps: int) -> None:
        """The job's pods take so many steps, or fewer where something ends them."""
        if not job.trains:
            return None
        ledger = job.order.plan
        if job.trained is None:
            self._begin(job)
        end = ledger.pods_end(job.order.first_step)
        if job.tunes and ledger.tuning is not None:
            end = ledger.tuning.steps
        for _ in range(steps):
            if not job.trains or job.trained is None:
                return None
            if job.step == end:
                return self._end_well(job)
            self._step(job)
        return None

    def _begin(self, job: SimulatedJob) -> None:
        """Resumes from the newest checkpoint that the ledger knows, as the trainer does."""
        ledger = job.order.plan
        if job.tunes:
            job.trained = (NONE_OF_THE_RUNS,) * self.tuned
            job.begun, job.checkpoint = self.tuned, self.tuned or None
            return
        known = [kept for kept in self.disk if kept == _batches(ledger, len(kept))]
        job.trained = max(known, key=len, default=())
        job.begun, job.checkpoint = job.step, job.step if known else None
        if (
            ledger.pods_end(job.begun) != ledger.pods_end(job.order.first_step)
            and job.begun < ledger.end_step
        ):
            self._exit(job, ExitCode.SUCCEEDED, reason=PHASE_BOUNDARY)

    def _step(self, job: SimulatedJob) -> None:
        assert job.trained is not None
        if job.tunes:
            job.trained = (*job.trained, NONE_OF_THE_RUNS)
            return self.commit(job) if job.step % 2 == 0 else None
        phase = job.order.plan.phase_at(job.step)
        if phase.teacher and phase.shape.micro_batch_size > self.fitting:
            return self._exit(job, ExitCode.OUT_OF_MEMORY)
        batch = job.order.plan.batch_at(job.step)
        if batch in self.bad_batches:
            return self._exit(job, ExitCode.NON_FINITE, fault=Fault(first_step=job.step, steps=1))
        job.trained = (*job.trained, batch)
        if job.step % job.order.spec.checkpoint.every_steps == 0:
            self.commit(job)
        return None

    def commit(self, job: SimulatedJob) -> None:
        """The job's pods, which have begun, write a checkpoint."""
        assert job.trained is not None
        if job.tunes:
            self.tuned = job.step
        else:
            self.disk.append(job.trained)
        job.checkpoint = job.step

    def _end_well(self, job: SimulatedJob) -> None:
        self.commit(job)
        last = job.tunes or job.step == job.order.plan.end_step
        self._exit(job, ExitCode.SUCCEEDED, reason="Succeeded" if last else PHASE_BOUNDARY)

    def stop(self, job: SimulatedJob) -> None:
        """SIGTERM to all of a job's pods: they write a checkpoint where they have begun."""
        if not job.pods:
            return
        if job.trained is not None:
            self.commit(job)
        self._exit(job, ExitCode.PREEMPTED)

    def kill(self, job: SimulatedJob, *, evicted: bool = False) -> None:
        """One rank is killed, and the other loses it; or its node takes both."""
        if job.pods:
            job.evicted = evicted
            self._exit(job, ExitCode.KILLED, silent=True)

    def crash(self, job: SimulatedJob, code: ExitCode) -> None:
        """A rank ends by itself."""
        if job.pods:
            self._exit(job, code)

    def _exit(
        self,
        job: SimulatedJob,
        code: ExitCode,
        *,
        reason: str | None = None,
        fault: Fault | None = None,
        silent: bool = False,
    ) -> None:
        kept = None if job.checkpoint is None else Checkpoint(step=job.checkpoint, uri="file:///runs/c")
        report = TerminationReport(
            exit_code=code,
            reason=reason or code.label,
            step=job.step,
            checkpoint=kept,
            checkpoints=tuple(sorted({len(trained) for trained in self.disk}, reverse=True)),
            fault=fault,
        )
        lost = report.model_copy(update={"exit_code": int(ExitCode.PEER_LOST)})
        job.words = (
            {0: (int(ExitCode.PEER_LOST), lost), 1: (int(code), None)} if silent else {0: (code, report)}
        )
        job.pods = False
        job.becomes = JobState.SUCCEEDED if code == ExitCode.SUCCEEDED else JobState.FAILED
        if not self.slow:
            self.catch_up(job)

    def catch_up(self, job: SimulatedJob) -> None:
        """The job's controller sees that its pods have ended."""
        if job.becomes is not None and job.state is not JobState.ENDING:
            job.state, job.becomes = job.becomes, None

    def remove(self, name: str) -> None:
        """Somebody deletes a job: it is gone once its pods are."""
        if name in self.jobs:
            self.jobs[name].state = JobState.ENDING

    def finish_removal(self, name: str, *, orphans: bool = False) -> None:
        """The pods of a job that is being deleted end, and with them the job and their words; or it goes, and
        leaves its pods behind for a while."""
        job = self.jobs[name]
        if job.state is not JobState.ENDING:
            return
        del self.jobs[name]
        if orphans and job.pods:
            self.orphans[name] = job
        else:
            self.stop(job)

    def end_orphans(self) -> None:
        """The pods that were left behind end."""
        for job in self.orphans.values():
            self.stop(job)
        self.orphans = {}

    def hear(self, job: SimulatedJob) -> None:
        """The pods act on what they were told."""
        if job.told.stop and job.answers and job.trains:
            self.stop(job)

    # What the operator does.

    def observe(self, shuffled: bool = False) -> Observation:
        """What the operator sees. Shuffled, the same in another order."""
        jobs = [self._seen(name, job, shuffled) for name, job in self.jobs.items()]
        suspend = self.document["spec"].get("suspend", False)
        ordered = tuple(jobs[::-1] if shuffled else jobs)
        left_over = tuple(sorted(f"{name}-0" for name in self.orphans))
        return Observation(self.document, self.status, ordered, suspend, left_over)

    def _seen(self, name: str, job: SimulatedJob, shuffled: bool) -> Job:
        pods = [
            Pod(
                f"{name}-{rank}",
                rank,
                running=job.pods and job.state is not JobState.SUSPENDED,
                told=job.told,
                exit_code=None if job.pods else int(job.words[rank][0]) if rank in job.words else None,
                report=job.words[rank][1] if not job.pods and rank in job.words else None,
                disruption="Evicted: drained" if job.evicted and rank == 1 else None,
            )
            for rank in (0, 1)
        ]
        made_from = pods_of_order(job.order)
        seen = tuple(pods[::-1] if shuffled else pods)
        return Job(name, job.state, None, seen, self._progress(job), made_from)

    def _progress(self, job: SimulatedJob) -> Progress | None:
        if not (job.trains and job.answers and job.trained is not None):
            return None
        kept = None if job.checkpoint is None else Checkpoint(step=job.checkpoint, uri="file:///runs/c")
        return Progress(
            state="Training",
            begun_step=job.begun,
            step=job.step,
            total_steps=job.order.plan.end_step,
            phase="tuning" if job.tunes else job.order.plan.phase_at(job.step).name,
            checkpoint=kept,
        )

    def look(self, *, dies: bool = False) -> Decision:
        """The operator decides, makes its children, and writes its status, unless it dies before."""
        run, ledger = parse_run(self.document), self.plan
        observation = self.observe()
        decision = decide(run, ledger, observation, self.now, self.settings)
        assert decision == decide(run, ledger, self.observe(shuffled=True), self.now, self.settings)
        if decision.ensure is not None:
            segment = decision.status.segments[-1]
            order = order_of(run, ledger, segment)
            others = [job for name, job in self.jobs.items() if name != decision.ensure]
            assert not any(job.pods for job in (*others, *self.orphans.values())), "two jobs would train"
            if segment.purpose == "Train":
                first = segment.first_step
                assert first == (self.status.checkpoint_step or 0), "it goes on where it is known"
                assert not first or _batches(ledger, first) in self.disk, "and where the ledger's own is kept"
            there = self.jobs.setdefault(segment.job, SimulatedJob(order, told(run.spec)))
            assert pods_of_order(there.order) == segment.pods, "made as another spec had it"
        if decision.tell is not None and decision.tell.job in self.jobs:
            self.jobs[decision.tell.job].told = decision.tell.words
        for name in decision.delete:
            self.remove(name)
        if not dies:
            self.status = decision.status
        return decision


def _batches(ledger: Plan, steps: int) -> Trained:
    return tuple(ledger.batch_at(step) for step in range(steps))
