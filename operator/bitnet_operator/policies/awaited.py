"""awaited: what is to happen where the child that a run asks for cannot be made yet, through no fault of its
words: the cluster does not know its kind, or a quota or a role forbids it."""

from datetime import datetime

from bitnet_operator.conditions import Said, say
from bitnet_operator.decision import Decision
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation

LOOK_AGAIN_SECONDS = 30.0
"""Until the run is looked at again: nothing tells the operator of a kind installed, or of a quota raised."""


def kind_missing(observation: Observation, message: str, now: datetime) -> Decision:
    """The run waits for a kind."""
    return _waits(observation, "KindMissing", message, now)


def forbidden(observation: Observation, message: str, now: datetime) -> Decision:
    """The run waits until its child may be made."""
    return _waits(observation, "Forbidden", message, now)


def _waits(observation: Observation, reason: str, message: str, now: datetime) -> Decision:
    """The run waits, and its condition Running says for what."""
    said = Said("Running", "False", reason, message)
    status = say(observation.status, observation.document, timestamp(now), said)
    return Decision(status=status, wake_after=LOOK_AGAIN_SECONDS)
