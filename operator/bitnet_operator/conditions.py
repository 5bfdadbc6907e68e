"""Conditions in a status: the one place that sets them, so that transition times move only on change."""

from typing import Literal

from bitnet_crds import Condition

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
