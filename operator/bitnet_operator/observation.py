"""Observation: all that `decide` may know of the world, as frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, NamedTuple

from bitnet_crds import BitNetRunStatus, Progress, TerminationReport
from bitnet_crds.protocol import Told


class Key(NamedTuple):
    """Names a run."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class JobState(Enum):
    """Where a child job stands."""

    ACTIVE = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    SUSPENDED = auto()
    """Held by a queue; has no pods."""
    ENDING = auto()
    """Being removed, and with it its pods, which may still write a checkpoint."""

    @property
    def live(self) -> bool:
        """Whether it has pods that train, or may get some."""
        return self in (JobState.ACTIVE, JobState.SUSPENDED)


@dataclass(frozen=True)
class Pod:
    """One pod of a job, or the one local process group that stands for it."""

    name: str
    rank: int
    """The pod's index among the job's pods; 0 holds rank 0 of the training."""
    running: bool = False
    waiting: str | None = None
    """Why it does not run yet, as Kubernetes says: `ImagePullBackOff: …`."""
    disruption: str | None = None
    """Why Kubernetes itself stopped it, where it did: `Evicted: …`, `PreemptionByScheduler: …`."""
    failed: bool = False
    """Whether Kubernetes says that it failed, by whichever of its containers, or before any began."""
    exit_code: int | None = None
    """Of the training container, once it has ended; where it failed by another one, how that one ended."""
    report: TerminationReport | None = None
    """Its last word, where there was one to read."""
    message: str | None = None
    """What else was found in the termination message, or said of the container, the pod or another container
    by which it failed."""
    told: Told | None = None
    """What the operator told it so far, where that can be read."""


@dataclass(frozen=True)
class Job:
    """One child job and what its pods say."""

    name: str
    state: JobState
    message: str | None = None
    """Why it failed, as the job's own controller says."""
    pods: tuple[Pod, ...] = ()
    progress: Progress | None = None
    """What rank 0 answered, where it could be asked."""
    made_from: str | None = None
    """What `Segment.pods` says of the segment that it was made for."""

    @property
    def by_rank(self) -> tuple[Pod, ...]:
        """Its pods, the one with rank 0 first."""
        return tuple(sorted(self.pods, key=lambda pod: (pod.rank, pod.name)))

    @property
    def first_pod(self) -> Pod | None:
        """The pod that runs rank 0, if one does."""
        return next((pod for pod in self.pods if pod.rank == 0 and pod.running), None)


@dataclass(frozen=True)
class Observation:
    """One run, as it stands now."""

    document: Mapping[str, Any]
    """The BitNetRun as a person wrote it, with the metadata it was given."""
    status: BitNetRunStatus
    """What was decided so far, read from where it was written."""
    jobs: tuple[Job, ...] = ()
    stop_requested: bool = False
    """Whether a person wants the run to stop here and go on another time."""
    left_over: tuple[str, ...] = ()
    """Names of the run's pods that still run while their job is gone."""
    gpus: int = 0
    """GPUs that pods with the run's label hold on nodes."""
    watched_since: datetime | None = None
    """Since when somebody looks at runs: what nobody could see before is no stall."""
    deleting: bool = False
    """Whether the run was deleted, and stays until what it keeps is removed."""
    removal: Job | None = None
    """The job that removes it, where the run was deleted and there is one."""

    def job(self, name: str) -> Job | None:
        """The child of that name, if it exists."""
        return next((job for job in self.jobs if job.name == name), None)
