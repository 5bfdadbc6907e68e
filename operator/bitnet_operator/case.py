"""Case: all that one decision is made from, and how it words a status. Pure."""

from dataclasses import dataclass
from datetime import datetime

from bitnet_crds import BitNetRun, BitNetRunStatus, Plan
from bitnet_operator.conditions import Said, say
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation
from bitnet_operator.policies import retry


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
