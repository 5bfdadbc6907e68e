"""Conditions in a status: the one place that sets them, so that transition times move only on change."""

from typing import Literal

from bitnet_crds import Condition, Progress

MESSAGE_LIMIT = 1024


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    *,
    generation: int,
    now: str,
) -> tuple[Condition, ...]:
    """The conditions with this one set, in their old order. `now` is used only where `status` changes."""
    before = next((condition for condition in conditions if condition.type == type_), None)
    since = before.last_transition_time if before and before.status == status else now
    after = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…",
        observed_generation=generation,
        last_transition_time=since,
    )
    if before is None:
        return (*conditions, after)
    return tuple(after if condition is before else condition for condition in conditions)


def about_warnings(
    conditions: tuple[Condition, ...], progress: Progress
) -> tuple[str, Literal["True", "False"], str, str] | None:
    """The same of what the trainer warns of. It appears with the first warning, and turns where a later
    process has none."""
    if progress.warnings:
        return "Warnings", "True", "TrainerWarned", " ".join(progress.warnings)
    if any(condition.type == "Warnings" for condition in conditions):
        return "Warnings", "False", "NoWarnings", "the trainer warns of nothing"
    return None


def about_checkpoints(
    conditions: tuple[Condition, ...], progress: Progress
) -> tuple[str, Literal["True", "False"], str, str] | None:
    """Type, status, reason and message of the condition on checkpoints; None where nothing is to be said.

    It appears when one fails and training goes on without, and turns when one succeeds.
    """
    if progress.checkpoint_error is not None:
        return "Checkpointing", "False", "CheckpointFailed", progress.checkpoint_error
    known = any(condition.type == "Checkpointing" for condition in conditions)
    if known and progress.checkpoint is not None and progress.checkpoint_at is not None:
        return "Checkpointing", "True", "Committed", f"step {progress.checkpoint.step} is kept"
    return None
