"""The base of every model in the contract: frozen, strict about keys, camelCase on the wire."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Record(BaseModel):
    """A frozen value whose JSON names are camelCase and whose unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class Report(Record):
    """A record read from another process, which may be of a newer version: unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore")
