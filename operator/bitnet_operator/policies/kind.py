"""kind: what is to happen where the cluster does not know the kind of child that a run asks for."""

from datetime import datetime

from bitnet_operator.conditions import Said, say
from bitnet_operator.decision import Decision
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation

LOOK_AGAIN_SECONDS = 30.0
"""Until the run is looked at again: nothing tells the operator that the kind was installed."""


def kind_missing(observation: Observation, message: str, now: datetime) -> Decision:
    """The run waits, and its condition Running says for what."""
    said = Said("Running", "False", "KindMissing", message)
    status = say(observation.status, observation.document, timestamp(now), said)
    return Decision(status=status, wake_after=LOOK_AGAIN_SECONDS)
