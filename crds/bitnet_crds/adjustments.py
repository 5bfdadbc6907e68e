"""Adjustments: what befell a run and made its ledger another one than its spec alone would give."""

from bitnet_crds.record import Report


class Rollback(Report):
    """The run went back to a checkpoint, and does not meet again what was not finite."""

    checkpoint_step: int
    """Steps completed in the checkpoint that it went back to; 0 where it began again."""
    first_batch: int
    """The first of the run's global batches (from 0) that is passed over: the one that was not finite."""
    batches: int
    """So many of them are passed over."""
    learning_rate_factor: float
    """From the checkpoint on, every learning rate is so much of what it was: `learningRateFactor` then."""


class Adjustments(Report):
    """Everything that changes the ledger of a run while it exists. It stands in the status."""

    halvings: dict[str, int] = {}
    """By phase, how often its micro batch was halved because memory ran out."""
    micro_batches: dict[str, int] = {}
    """By phase whose micro batch is Auto, the one that was found to fit; halvings come after it."""
    rollbacks: tuple[Rollback, ...] = ()
    """Oldest first."""
    phase_ends: dict[str, int] = {}
    """By phase, the step before which it ended early because the loss had stopped falling."""
    end_step: int | None = None
    """The step before which training ended early for the same reason."""
