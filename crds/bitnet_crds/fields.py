"""Field types that several parts of the spec share."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints, WithJsonSchema

from bitnet_crds.errors import WrongValueError

Label = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            "maxLength": 63,
            "x-mend": "not a name: write lower-case letters, digits and hyphens, no hyphen first or last",
        }
    ),
]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]


Weight = Annotated[float, Field(ge=0, le=1_000_000)]


def refuse_duplicates(what: str, names: Sequence[str]) -> None:
    """Raises WrongValueError where two of `what` have the same name."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise WrongValueError(f"two {what}s are named {name!r}", f"Give each {what} a name of its own")
