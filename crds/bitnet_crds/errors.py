"""What can be wrong with a run: each problem names the field, what is wrong, and the mend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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


class WrongValueError(ValueError):
    """What a validator raises; `parse_run` makes a Problem of it."""

    def __init__(self, what: str, fix: str, field: str = "") -> None:
        """`field` names the key to blame where the validator sees a whole block."""
        self.what = what
        self.fix = fix
        self.field = field
        super().__init__(f"{what}. {fix}.")


class WrongValuesError(ValueError):
    """What a validator raises that finds several things wrong at once."""

    def __init__(self, wrong: Sequence[WrongValueError]) -> None:
        self.wrong = wrong
        super().__init__(" ".join(map(str, wrong)))
