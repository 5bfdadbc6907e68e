"""What the operator reports: BitNetRunStatus, its segments and conditions."""

from enum import StrEnum
from typing import Literal

from bitnet_crds.adjustments import Adjustments
from bitnet_crds.protocol import Evaluation, Purpose
from bitnet_crds.record import Report
from bitnet_crds.shapes import Shape


class RunPhase(StrEnum):
    """Where a run stands in its life."""

    PENDING = "Pending"
    """Accepted or not yet looked at; nothing trains."""
    RUNNING = "Running"
    """A segment trains, or the next attempt is waited for."""
    SUSPENDED = "Suspended"
    """A person stopped it; it goes on from its last checkpoint."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (RunPhase.SUCCEEDED, RunPhase.FAILED)


class SegmentReason(StrEnum):
    """Why a segment began."""

    TEACHER_TUNING = "TeacherTuning"
    """The teacher is tuned before the run's first step; its steps are none of the run's."""
    START = "Start"
    TEACHER_PHASE = "TeacherPhase"
    """The teacher came in (or left) and the micro batch with it, in the same pods or in others."""
    PHASE = "Phase"
    """A phase began in other pods, or with another micro batch, than the one before."""
    RETRY = "Retry"
    PREEMPTED = "Preempted"
    RESUMED = "Resumed"
    """A person stopped the run, and started it again."""
    SPEC_CHANGE = "SpecChange"
    """A person changed the pods, or the size of their micro batch."""
    ROLLBACK = "Rollback"
    """Losses were not finite: it went back to a checkpoint from before, and passes their batches over."""
    OUT_OF_MEMORY = "OutOfMemory"
    """Memory ran out, and the micro batch was halved."""
    LOSS_PLATEAU = "LossPlateau"
    """The loss had stopped falling: the next phase, or evaluation and export."""


class SegmentOutcome(StrEnum):
    """How a segment stands, or ended."""

    RUNNING = "Running"
    COMPLETED = "Completed"
    """It reached its last step: the run's end, or the segment in the same job that follows."""
    PREEMPTED = "Preempted"
    """Something else stopped its pods: a drained node, Spot capacity taken back."""
    SUSPENDED = "Suspended"
    """A person stopped it."""
    ENDED = "Ended"
    """The operator ended it, to begin another: the pods changed, or the loss had stopped falling."""
    FAILED = "Failed"


class Ending(Report):
    """Why the operator asks a segment's pods to end. It is written down before they are asked."""

    reason: str
    """`Suspended`, `SpecChanged`, `LossPlateau`, or what stalled: `Unresponsive`, `ImagePullBackOff`…"""
    message: str
    at: str
    phase: str | None = None
    """With LossPlateau: the phase of spec.phases whose loss it is."""


class Segment(Report):
    """One stretch of steps in one shape, by one child job. Segments that follow each other in place, when
    the teacher comes in, share their job."""

    index: int
    reason: SegmentReason
    job: str
    """Name of the child that trains it."""
    first_step: int
    """The step it begins at: 0, a committed checkpoint's, or a phase boundary."""
    end_step: int
    """The step it is to end before."""
    shape: Shape
    purpose: Purpose = "Train"
    """TuneTeacher: its steps are the tuning's, and none of the run's."""
    outcome: SegmentOutcome = SegmentOutcome.RUNNING
    last_step: int | None = None
    """The last step its pods were heard to complete (a count: 3 means steps 0, 1 and 2)."""
    exit_code: int | None = None
    """The failed rank's own exit code."""
    exit_reason: str | None = None
    """The exit code's name."""
    message: str | None = None
    """What the pod said, or what Kubernetes said of it."""
    ending: Ending | None = None
    """Why the operator ended it, where it did."""
    then: SegmentReason | None = None
    """Why the next segment begins; none where the run ended with it."""
    checkpoint_step: int | None = None
    """Steps completed in the newest committed checkpoint when it had ended."""
    pods: str | None = None
    """Names what its pods were made from, so that a change of it is seen."""
    started_at: str
    ended_at: str | None = None


class Condition(Report):
    """One statement on the run, as Kubernetes' metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    observed_generation: int
    last_transition_time: str


class BitNetRunStatus(Report):
    """All that is known of a run. What the operator decided can be read in `segments` alone."""

    observed_generation: int = 0
    """metadata.generation of the spec that the rest was decided from."""
    phase: RunPhase = RunPhase.PENDING
    progress_at: str | None = None
    """When the progress below was read."""
    training_phase: str | None = None
    """Name of the phase of spec.phases that is being trained."""
    step: int = 0
    """Optimiser steps completed."""
    doing: str | None = None
    """What the trainer is doing: `Training`, `LoadingModel`…"""
    prepared_tokens: int = 0
    """Tokens that the trainer made of text, as far as it is; 0 where it found them made."""
    active_at: str | None = None
    """When `step`, `doing` or `prepared_tokens` last moved."""
    total_steps: int | None = None
    """Optimiser steps of the whole run."""
    loss: str | None = None
    """Total loss of the last step, in decimals (API conventions forbid floats)."""
    tokens: int = 0
    """Tokens trained."""
    tokens_per_second: int | None = None
    """Tokens trained a second, over all workers."""
    skipped_steps: int = 0
    """Steps left out because loss or gradient was not finite."""
    checkpoint_step: int | None = None
    """Steps completed in the newest committed checkpoint."""
    attempts: int = 0
    """Failed segments that count against spec.retries: those since a checkpoint was last committed."""
    adjustments: Adjustments = Adjustments()
    """What befell the run and changed its ledger."""
    retry_at: str | None = None
    """When the next attempt begins, while one is waited for."""
    segment: str | None = None
    """Index and reason of the current segment."""
    segments: tuple[Segment, ...] = ()
    """The run's whole history, oldest first."""
    conditions: tuple[Condition, ...] = ()
    """Statements on the run, one a type."""
    evaluation: Evaluation | None = None
    artifacts: dict[str, str] = {}
    """Where what came out is, by kind: a format of the export, or LossPlot."""
