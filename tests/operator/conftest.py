"""A small run in three phases, the teacher in the last, and the observations that tests make of it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from bitnet_crds import (
    BitNetRunStatus,
    Condition,
    ExitCode,
    Plan,
    Progress,
    Segment,
    TerminationReport,
    parse_run,
    plan,
)
from bitnet_crds.protocol import PHASE_BOUNDARY, Checkpoint
from bitnet_operator.case import Settings
from bitnet_operator.conditions import condition
from bitnet_operator.decide import decide
from bitnet_operator.decision import Decision
from bitnet_operator.observation import Job, JobState, Observation, Pod
from bitnet_operator.segments import told
from small_run import START, small_document


class Scene:
    """A run under `decide`, moved on by hand: what it decided stands, and time passes when told."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.run = parse_run(document)
        self.status = BitNetRunStatus()
        self.now = START
        self.settings = Settings(progress_interval=15, first_retry_delay=10)
        self.told = told(self.run.spec)

    @property
    def plan(self) -> Plan:
        """The ledger, after what befell the run."""
        return plan(self.run.spec, self.status.adjustments)

    def change(self, **spec: Any) -> None:
        """A person edits these fields of the spec."""
        self.document["spec"] |= spec
        self.document["metadata"]["generation"] += 1
        self.run = parse_run(self.document)

    def decide(
        self,
        *jobs: Job,
        stop: bool = False,
        left_over: tuple[str, ...] = (),
        watched_since: datetime | None = None,
    ) -> Decision:
        """Decides on these jobs and writes the status down."""
        observation = Observation(
            self.document, self.status, jobs, stop, left_over, watched_since=watched_since
        )
        decision = decide(self.run, self.plan, observation, self.now, self.settings)
        self.status = decision.status
        return decision

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.now += timedelta(seconds=seconds)

    def progress(self, step: int, checkpoint: int | None = None, loss: float = 3.0) -> Progress:
        """What rank 0 says after so many steps."""
        phase = self.plan.phase_at(step)
        return Progress(
            state="Training",
            step=step,
            total_steps=self.plan.total_steps,
            phase=phase.name,
            loss=loss,
            tokens=step * self.plan.tokens_per_step,
            tokens_per_second=100.0,
            checkpoint=None if checkpoint is None else Checkpoint(step=checkpoint, uri="file:///runs/c"),
        )

    def active(self, step: int | None = None, checkpoint: int | None = None, name: str | None = None) -> Job:
        """The current job at work, or waiting where no step is given."""
        progress = None if step is None else self.progress(step, checkpoint)
        last = self.status.segments[-1]
        pod = Pod("pod-0", 0, running=True, told=self.told)
        return Job(name or last.job, JobState.ACTIVE, None, (pod,), progress, last.pods)

    def says(self, step: int, checkpoint: int | None = None, **words: Any) -> Job:
        """The current job at work, whose first rank says these words too."""
        job = self.active(step, checkpoint)
        said = self.progress(step, checkpoint).model_dump(exclude_unset=True) | words
        return replace(job, progress=Progress(**said))

    def ended(self, code: int, checkpoint: int | None = None, rank: int = 0, **report: Any) -> Pod:
        """A pod that ended by itself, with its last word."""
        kept = None if checkpoint is None else Checkpoint(step=checkpoint, uri="file:///runs/c")
        said = {"reason": ExitCode(code).label, "checkpoint": kept, "step": checkpoint or 0} | report
        words = TerminationReport(exit_code=code, **said)
        return Pod(f"pod-{rank}", rank, exit_code=code, report=words)

    def boundary(self, checkpoint: int | None) -> Job:
        """The current job, whose pods ended well where the next phase trains in others."""
        return self.succeeded(self.ended(0, checkpoint, reason=PHASE_BOUNDARY))

    def condition(self, type_: str) -> Condition | None:
        """That condition of the status."""
        return condition(self.status.conditions, type_)

    @property
    def last(self) -> Segment:
        """The newest segment."""
        return self.status.segments[-1]

    def failed(self, *pods: Pod) -> Job:
        """The current job, failed with these pods."""
        return Job(self.status.segments[-1].job, JobState.FAILED, "a pod failed", pods)

    def succeeded(self, *pods: Pod) -> Job:
        """The current job, at its end."""
        return Job(self.status.segments[-1].job, JobState.SUCCEEDED, pods=pods)


@pytest.fixture
def document() -> dict[str, Any]:
    """A fresh copy of the run, to change at will."""
    return small_document()


@pytest.fixture
def scene(document: dict[str, Any]) -> Scene:
    """The run before anything was decided."""
    return Scene(document)


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """As many fresh scenes as a test takes, of runs with these fields in their spec."""
    return lambda **spec: Scene(small_document(**spec))
