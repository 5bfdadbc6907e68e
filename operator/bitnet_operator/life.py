"""The life of a run as a table: how the pods of a segment end, and what follows. See docs/runs.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bitnet_crds import SegmentReason
from bitnet_crds.status import RunPhase, SegmentOutcome


class End(StrEnum):
    """How the pods of a segment ended."""

    TUNED = "Tuned"
    BOUNDARY = "Boundary"
    DONE = "Done"
    SUSPENDED = "Suspended"
    SPEC_CHANGED = "SpecChanged"
    PLATEAU = "Plateau"
    PREEMPTED = "Preempted"
    NON_FINITE = "NonFinite"
    OUT_OF_MEMORY = "OutOfMemory"
    STALLED = "Stalled"
    FAILED = "Failed"
    HOPELESS = "Hopeless"


@dataclass(frozen=True)
class Course:
    """What an end means, and what comes after it."""

    when: str
    """What happened to the pods."""
    outcome: SegmentOutcome
    begins: SegmentReason | None
    """Why the next segment begins; none where the run is over."""
    person: str
    """What a person does next."""
    counts: bool = False
    """Whether it is an attempt of spec.retries."""
    waits: RunPhase | None = None
    """Where the run stands until the next segment, if not Running."""
    over: RunPhase | None = None
    """How the run ended; with `begins`, how it ends where its limit is reached."""


_NOTHING = "Nothing."

LIFE: Mapping[End, Course] = {
    End.TUNED: Course("The teacher is tuned.", SegmentOutcome.COMPLETED, SegmentReason.START, _NOTHING),
    End.BOUNDARY: Course(
        "A phase is over, and the next trains in other pods; a checkpoint was written.",
        SegmentOutcome.COMPLETED,
        SegmentReason.PHASE,
        _NOTHING,
    ),
    End.DONE: Course(
        "The last step is done, the model evaluated and exported.",
        SegmentOutcome.COMPLETED,
        None,
        "Take the model: status.artifacts says where it is, status.evaluation how good.",
        over=RunPhase.SUCCEEDED,
    ),
    End.SUSPENDED: Course(
        "spec.suspend is true: the pods wrote a checkpoint and ended.",
        SegmentOutcome.SUSPENDED,
        SegmentReason.RESUMED,
        "Set spec.suspend to false, and it goes on.",
        waits=RunPhase.SUSPENDED,
    ),
    End.SPEC_CHANGED: Course(
        "Workers or their template were changed: the pods wrote a checkpoint and ended.",
        SegmentOutcome.ENDED,
        SegmentReason.SPEC_CHANGE,
        _NOTHING,
    ),
    End.PLATEAU: Course(
        "The loss had stopped falling, and health.plateau says Stop or NextPhase.",
        SegmentOutcome.ENDED,
        SegmentReason.LOSS_PLATEAU,
        "Nothing; the condition LossPlateau says since which step.",
    ),
    End.PREEMPTED: Course(
        "Something else stopped a pod: a drained node, Spot capacity taken back, SIGTERM.",
        SegmentOutcome.PREEMPTED,
        SegmentReason.PREEMPTED,
        _NOTHING,
    ),
    End.NON_FINITE: Course(
        "More steps in a row than health.nonFinite.skipSteps had a loss or gradient that was not finite.",
        SegmentOutcome.FAILED,
        SegmentReason.ROLLBACK,
        "Nothing while roll-backs are left. After the last: lower the learning rate, or mend the text that "
        "status.adjustments.rollbacks points at, in a new run.",
        over=RunPhase.FAILED,
    ),
    End.OUT_OF_MEMORY: Course(
        "Memory ran out.",
        SegmentOutcome.FAILED,
        SegmentReason.OUT_OF_MEMORY,
        "Nothing while the micro batch can be halved. After three times: larger GPUs, more of them with "
        "parallelism FSDP, or shorter sequences in a new run.",
        over=RunPhase.FAILED,
    ),
    End.STALLED: Course(
        "No step for health.stallSeconds, or pods that never came up.",
        SegmentOutcome.FAILED,
        SegmentReason.RETRY,
        "Read the segment's message; mend the image, the volume or the quota that it names.",
        counts=True,
        over=RunPhase.FAILED,
    ),
    End.FAILED: Course(
        "A rank failed in a way that may not come again: it crashed, or was killed.",
        SegmentOutcome.FAILED,
        SegmentReason.RETRY,
        "Nothing while attempts are left. After the last: read the segment's message and the pod's log.",
        counts=True,
        over=RunPhase.FAILED,
    ),
    End.HOPELESS: Course(
        "A rank said what would be so again: a model, teacher or text that is not there, a wrong value.",
        SegmentOutcome.FAILED,
        None,
        "Mend what the message names, and make a new run.",
        counts=True,
        over=RunPhase.FAILED,
    ),
}
"""Every end, in the order in which they are drawn."""

REASON_OF: Mapping[str, End] = {
    "Suspended": End.SUSPENDED,
    "SpecChanged": End.SPEC_CHANGED,
    "LossPlateau": End.PLATEAU,
}
"""The end by the reason of an `Ending`; any other is a stall's."""


def end_asked_for(reason: str) -> End:
    """How a segment ends that the operator asked to end for this reason."""
    return REASON_OF.get(reason, End.STALLED)
