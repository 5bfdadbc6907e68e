"""What can be wrong with a run: each problem names the field, what is wrong, and the mend."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic_core import PydanticCustomError


class ContractError(Exception):
    """Base of every error that the contract raises."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in what a person wrote."""

    field: str
    """Path as one writes it in YAML, such as `spec.phases[1].until`."""
    what: str
    """What is wrong, with the value found."""
    fix: str
    """What to write instead."""

    def __str__(self) -> str:
        return f"{self.field}: {self.what}. {self.fix}" + ("" if self.fix.endswith(("?", "`")) else ".")


class InvalidRun(ContractError):
    """A BitNetRun that cannot be carried out as written; `problems` holds every one that was found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def wrong(what: str, fix: str, field: str = "") -> PydanticCustomError:
    """The error that a validator raises; `field` names the key where the validator sees a whole block.

    It is a ValueError, and becomes a Problem in `parse_run`.
    """
    return PydanticCustomError("wrong", "{what}. {fix}.", {"what": what, "fix": fix, "field": field})
