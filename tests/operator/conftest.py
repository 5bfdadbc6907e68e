"""A small run in three phases, the teacher in the last, and the observations that tests make of it."""

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitnet_crds import BitNetRunStatus, Plan, Progress, parse_run, plan
from bitnet_crds.protocol import Checkpoint
from bitnet_operator.decide import Settings, decide
from bitnet_operator.decision import Decision
from bitnet_operator.observation import Job, JobState, Observation, Pod

START = datetime(2026, 1, 1, tzinfo=UTC)

DOCUMENT: dict[str, Any] = {
    "apiVersion": "bitnet.training/v1alpha1",
    "kind": "BitNetRun",
    "metadata": {"name": "small", "namespace": "team", "uid": "u-1", "generation": 1, "resourceVersion": "7"},
    "spec": {
        "model": {"from": "file:///models/student"},
        "data": {"sequenceLength": 16, "sources": [{"name": "text", "uri": "file:///text"}]},
        "budget": {"tokens": 16 * 8 * 10, "globalBatchSize": 8},
        "phases": [
            {"name": "warmup", "until": "20%", "objectives": {"crossEntropy": {"weight": 1}}},
            {"name": "main", "until": "60%", "objectives": {"crossEntropy": {"weight": 1}}},
            {
                "name": "distill",
                "until": "100%",
                "objectives": {"crossEntropy": {"weight": 1}, "teacherLogits": {"weight": 1}},
            },
        ],
        "teacher": {"from": "file:///models/teacher"},
        "workers": {"count": 2, "gpusPerWorker": 0, "microBatchSize": 4},
        "checkpoint": {"uri": "file:///runs", "everySteps": 2},
        "retries": 2,
    },
}


class Scene:
    """A run under `decide`, moved on by hand: what it decided stands, and time passes when told."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.run = parse_run(document)
        self.plan: Plan = plan(self.run.spec)
        self.status = BitNetRunStatus()
        self.now = START
        self.settings = Settings(progress_interval=15, first_retry_delay=10)

    def decide(self, *jobs: Job, stop: bool = False) -> Decision:
        """Decides on these jobs and writes the status down."""
        observation = Observation(self.document, self.status, jobs, stop)
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
        return Job(name or self.status.segments[-1].job, JobState.ACTIVE, progress=progress)

    def failed(self, *pods: Pod) -> Job:
        """The current job, failed with these pods."""
        return Job(self.status.segments[-1].job, JobState.FAILED, "a pod failed", pods)

    def succeeded(self, *pods: Pod) -> Job:
        """The current job, at its end."""
        return Job(self.status.segments[-1].job, JobState.SUCCEEDED, pods=pods)


@pytest.fixture
def document() -> dict[str, Any]:
    """A fresh copy of the run, to change at will."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def scene(document: dict[str, Any]) -> Scene:
    """The run before anything was decided."""
    return Scene(document)


@pytest.fixture
def make_scene() -> Callable[[], Scene]:
    """As many fresh scenes as a property takes."""
    return lambda: Scene(copy.deepcopy(DOCUMENT))
