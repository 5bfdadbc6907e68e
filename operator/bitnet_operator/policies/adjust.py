"""What a policy answers that changes the run's ledger, or cannot any more."""

from dataclasses import dataclass

from bitnet_crds.adjustments import Adjustments


@dataclass(frozen=True)
class Adjusted:
    """The run goes on under another ledger."""

    adjustments: Adjustments
    message: str
    checkpoint_step: int | None = None
    """Where it goes on, if not at its newest checkpoint."""


@dataclass(frozen=True)
class Exhausted:
    """Nothing is left to change: the run has failed."""

    message: str
