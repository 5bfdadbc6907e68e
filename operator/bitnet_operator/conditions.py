"""Conditions in a status: the one place that sets them, so that transition times move only on change."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from bitnet_crds import BitNetRunStatus, Condition

MESSAGE_LIMIT = 1024


class Said(NamedTuple):
    """What a condition is to say."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


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
    before = condition(conditions, type_)
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
    return tuple(after if each is before else each for each in conditions)


def condition(conditions: tuple[Condition, ...], type_: str) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def say(status: BitNetRunStatus, document: Mapping[str, Any], now: str, *said: Said) -> BitNetRunStatus:
    """The status with these conditions set, of the generation that `document` has."""
    conditions = status.conditions
    for each in said:
        conditions = set_condition(conditions, *each, generation=generation(document), now=now)
    return status.model_copy(update={"conditions": conditions})


def generation(document: Mapping[str, Any]) -> int:
    """metadata.generation of a run as the API server returns it; 1 of one on this machine."""
    return int(document.get("metadata", {}).get("generation", 1))
