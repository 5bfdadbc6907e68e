"""How a run fails: by its own words, by what the API server refuses, or for good after a segment. Pure."""

from dataclasses import replace
from datetime import datetime

from bitnet_crds import BitNetRunStatus, Condition, InvalidRun
from bitnet_crds.status import RunPhase, SegmentOutcome
from bitnet_operator.conditions import Said, condition, generation, say
from bitnet_operator.decision import Decision, Event
from bitnet_operator.moments import timestamp
from bitnet_operator.observation import Observation
from bitnet_operator.segments import open_segment, strays


def reject(observation: Observation, invalid: InvalidRun, now: datetime) -> Decision:
    """What is to happen with a run that cannot be carried out as written: it fails, and nothing is made.

    One that trains already, accepted by an operator of another version, is stopped: nothing may train under
    a run that is said to have failed.
    """
    decision = fail(observation, "InvalidSpec", str(invalid), now, accepted=False)
    current = open_segment(observation.status)
    if current is None or not decision.events:
        return replace(decision, delete=strays(observation, decision.status))
    ended = current.model_copy(
        update={"outcome": SegmentOutcome.FAILED, "message": str(invalid), "ended_at": timestamp(now)}
    )
    status = decision.status.model_copy(update={"segments": (*observation.status.segments[:-1], ended)})
    return replace(decision, delete=strays(observation, status), status=status)


def child_refused(observation: Observation, message: str, now: datetime) -> Decision:
    """What is to happen when the API server will not have the child that the run's template makes."""
    return fail(observation, "ChildRefused", message, now, accepted=True)


def fail(observation: Observation, reason: str, message: str, now: datetime, *, accepted: bool) -> Decision:
    """The run has failed, for good; one that had ended stays as it is, unless it failed because of words that
    a person has changed since."""
    status = observation.status
    if status.phase.ended and not _other_words(observation):
        return Decision(status=status)
    said = [] if accepted else [Said("Accepted", "False", reason, message)]
    said += [Said("Running", "False", reason, message), Said("Failed", "True", reason, message)]
    update = {
        "observed_generation": generation(observation.document),
        "phase": RunPhase.FAILED,
        "retry_at": None,
        "conditions": _without_refusal(status.conditions) if accepted else status.conditions,
    }
    status = say(status.model_copy(update=update), observation.document, timestamp(now), *said)
    return Decision(status=status, events=(Event("Warning", reason, message),))


def mended(observation: Observation) -> BitNetRunStatus:
    """The status of a run that failed because of its words, reopened where a person has changed them since;
    any other's as it is."""
    return reopened(observation.status) if _other_words(observation) else observation.status


def _other_words(observation: Observation) -> bool:
    """Whether the run failed because of its words, and a person has changed them since."""
    why = condition(observation.status.conditions, "Failed")
    if why is None or why.reason not in ("InvalidSpec", "ChildRefused"):
        return False
    return generation(observation.document) > why.observed_generation


def _without_refusal(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """The conditions, less the word that an earlier spec could not be carried out."""
    return tuple(each for each in conditions if (each.type, each.status) != ("Accepted", "False"))


def reopened(status: BitNetRunStatus) -> BitNetRunStatus:
    """A failed run's status, ready for another try from its last checkpoint; any other's as it is.

    The history stays; the attempts are counted anew.
    """
    if status.phase is not RunPhase.FAILED:
        return status
    conditions = tuple(each for each in _without_refusal(status.conditions) if each.type != "Failed")
    return status.model_copy(
        update={"phase": RunPhase.PENDING, "attempts": 0, "retry_at": None, "conditions": conditions}
    )
