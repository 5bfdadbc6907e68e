"""Case: all that one decision is made from, and how it words a status. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from bitnet_crds import BitNetRun, BitNetRunStatus, Plan, plan
from bitnet_crds.tuning import TUNING
from bitnet_operator.conditions import Said, say
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation
from bitnet_operator.policies import retry
from bitnet_operator.segments import as_planned


@dataclass(frozen=True)
class Settings:
    """What an administrator may tune."""

    progress_interval: float = 15.0
    """Seconds between two looks at a run that trains, and at least between two writes of its progress."""
    first_retry_delay: float = retry.FIRST_DELAY_SECONDS
    """Seconds before the first retry; each one doubles it."""


@dataclass(frozen=True)
class Case:
    """One run whose spec is in order, as it stands now."""

    run: BitNetRun
    plan: Plan
    """Its ledger after the adjustments in its status."""
    observation: Observation
    now: datetime
    settings: Settings

    @property
    def at(self) -> str:
        """Now, as a status has it."""
        return timestamp(self.now)

    def say(self, status: BitNetRunStatus, *said: Said) -> BitNetRunStatus:
        """The status with these conditions set."""
        return say(status, self.observation.document, self.at, *said)


def fitted(
    case: Case, status: BitNetRunStatus, micro_batches: Mapping[str, int]
) -> tuple[Case, BitNetRunStatus]:
    """The case and the status after pods found out which micro batches fit, by phase: the ledger and the open
    segment have them."""
    if micro_batches and status.segments[-1].purpose == "TuneTeacher":
        # Its pods have one phase, whatever they call it.
        micro_batches = {TUNING: min(micro_batches.values())}
    known = status.adjustments
    if micro_batches.items() <= known.micro_batches.items():
        return case, status
    # Before one was found, halvings bounded the search for it; they come after it from now on.
    halvings = {
        name: times
        for name, times in known.halvings.items()
        if name in known.micro_batches or name not in micro_batches
    }
    found = {"micro_batches": {**known.micro_batches, **micro_batches}, "halvings": halvings}
    adjustments = known.model_copy(update=found)
    ledger = plan(case.run.spec, adjustments)
    segments = (*status.segments[:-1], as_planned(ledger, status.segments[-1]))
    update = {"adjustments": adjustments, "segments": segments}
    return replace(case, plan=ledger), status.model_copy(update=update)
