"""kind: what is to happen where the cluster does not know the kind of child that a run asks for."""

from datetime import datetime

from bitnet_operator.conditions import set_condition
from bitnet_operator.decision import Decision
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation

LOOK_AGAIN_SECONDS = 30.0
"""Until the run is looked at again: nothing tells the operator that the kind was installed."""


def kind_missing(observation: Observation, message: str, now: datetime) -> Decision:
    """The run waits, and its condition Running says for what."""
    conditions = set_condition(
        observation.status.conditions,
        "Running",
        "False",
        "KindMissing",
        message,
        generation=int(observation.document["metadata"].get("generation", 1)),
        now=timestamp(now),
    )
    status = observation.status.model_copy(update={"conditions": conditions})
    return Decision(status=status, wake_after=LOOK_AGAIN_SECONDS)
