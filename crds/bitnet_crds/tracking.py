"""Where a run's figures go while it trains, beside its own folder."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema

from bitnet_crds.errors import WrongValueError
from bitnet_crds.record import Record

_PROJECT = r"^[^/\\#?%:]+$"
_SECRET = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

_MEND = "write 1 to 128 characters, none of them / \\ # ? % :"


def _taken_by_wandb(name: str) -> str:
    if len(name) > 128 or not re.fullmatch(_PROJECT, name):
        raise WrongValueError(f"{name!r} is not a name that W&B takes", _MEND.capitalize())
    return name


WandbName = Annotated[
    str,
    AfterValidator(_taken_by_wandb),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": _PROJECT,
            "maxLength": 128,
            "x-mend": f"not a name that W&B takes: {_MEND}",
        }
    ),
]
SecretName = Annotated[
    str,
    StringConstraints(pattern=_SECRET, max_length=253),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": _SECRET,
            "maxLength": 253,
            "x-mend": "not a Secret's name: write lower-case letters, digits, hyphens and dots",
        }
    ),
]


class Wandb(Record):
    """Weights & Biases. A run that goes on continues its W&B run. Where W&B cannot be reached or there is no
    key, figures are kept in the run's folder, training goes on, and the condition Warnings says so."""

    project: WandbName
    """The project that the run is shown in."""
    entity: WandbName | None = None
    """Team or user that the project belongs to; without it the key's own default."""
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The run's name in W&B; without it that of this run."""
    secret: SecretName | None = None
    """A Secret in the run's namespace whose key WANDB_API_KEY becomes the pods' environment. Pods start
    without it, too."""


class Tracking(Record):
    """Where figures go while the run trains, beside metrics.jsonl and /metrics."""

    wandb: Wandb
