"""reconcile: observe -> decide -> apply, for one run."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol

from bitnet_crds import InvalidRun, Plan, parse_run, plan
from bitnet_operator.case import Settings
from bitnet_operator.decide import decide
from bitnet_operator.decision import (
    ChildForbiddenError,
    ChildRefusedError,
    Decision,
    KindMissingError,
    NamespaceEndingError,
)
from bitnet_operator.failing import child_refused, mended, reject
from bitnet_operator.observation import Key, Observation
from bitnet_operator.policies.awaited import forbidden, kind_missing
from bitnet_operator.removal import abandoned, not_removed, removal


class World(Protocol):
    """Where runs live: a Kubernetes cluster, or this machine."""

    async def observe(self, key: Key) -> Observation | None:
        """The run as it stands now; None where it is gone."""
        ...

    async def apply(self, key: Key, observation: Observation, plan: Plan | None, decision: Decision) -> None:
        """Makes the decision true: children, then the status in one write, then events.

        Raises ChildRefusedError, with nothing written, where the child cannot be made as its template says,
        ChildForbiddenError, likewise, where it may not be made now, KindMissingError where the cluster does
        not know its kind, and NamespaceEndingError where a deleted run's removal cannot be made any more.
        """
        ...


async def reconcile(world: World, key: Key, now: datetime, settings: Settings) -> float | None:
    """Looks at one run and takes it one decision further. Returns the seconds until the next look."""
    observation = await world.observe(key)
    if observation is None:
        return None
    ledger: Plan | None = None
    try:
        run = parse_run(observation.document)
        ledger = plan(run.spec, observation.status.adjustments)
    except InvalidRun as invalid:
        words = f"its spec cannot be read any more ({invalid})"
        decision = (
            abandoned(observation, words) if observation.deleting else reject(observation, invalid, now)
        )
    else:
        decision = (
            removal(run, observation, now)
            if observation.deleting
            else decide(run, ledger, observation, now, settings)
        )
    try:
        await world.apply(key, observation, ledger, decision)
    except ChildRefusedError as refusal:
        refused = not_removed if observation.deleting else child_refused
        decision = refused(observation, str(refusal), now)
        await world.apply(key, observation, ledger, decision)
    except (KindMissingError, ChildForbiddenError) as unmade:
        waits = forbidden if isinstance(unmade, ChildForbiddenError) else kind_missing
        decision = waits(replace(observation, status=mended(observation)), str(unmade), now)
        await world.apply(key, observation, ledger, decision)
    except NamespaceEndingError as ending:
        decision = abandoned(observation, str(ending))
        await world.apply(key, observation, ledger, decision)
    return decision.wake_after
