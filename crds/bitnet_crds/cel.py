"""A rule in CEL, the language in which the API server checks an object."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """One entry of `x-kubernetes-validations`."""

    rule: str
    """A CEL expression over `self` and, where only changes are judged, `oldSelf`."""
    message: str
    """What is wrong and what to write instead."""
    message_expression: str | None = None
    """CEL for a message that shows the values; `message` stands in where it fails."""
    field_path: str | None = None
    """The field to blame, below the block that the rule belongs to."""

    def to_schema(self) -> dict[str, Any]:
        """The rule as the CustomResourceDefinition has it."""
        entry = {
            "rule": self.rule,
            "message": self.message,
            "messageExpression": self.message_expression,
            "fieldPath": self.field_path,
        }
        return {key: value for key, value in entry.items() if value is not None}


def matching(pattern: str, mend: str, *, is_string: bool) -> Rule:
    """A rule instead of `pattern`, since the API server's own message would show the pattern alone."""
    # `string()` hides a string's maxLength from the server's estimate of the rule's cost.
    return Rule(f"{'self' if is_string else 'string(self)'}.matches(r'{pattern}')", mend)


def any_weighted(objectives: str, names: Iterable[str]) -> str:
    """CEL: whether one of the named objectives has weight in the block `objectives`."""
    weighted = (f"has({objectives}.{name}) && {objectives}.{name}.weight > 0.0" for name in names)
    return f"({' || '.join(weighted)})"
