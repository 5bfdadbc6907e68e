"""The cluster as a world that runs live in."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from bitnet_crds import Plan
from bitnet_operator.api import RUNS, Api
from bitnet_operator.apply import apply
from bitnet_operator.decision import Decision
from bitnet_operator.metrics import RunMetrics
from bitnet_operator.observation import Key, Observation
from bitnet_operator.observe import observe

_PAGE = 500


@dataclass
class Cluster:
    """A Kubernetes cluster, seen through its API server and its pods' /progress."""

    api: Api
    http: aiohttp.ClientSession
    """For asking pods; it never carries the operator's credentials."""
    trainer_image: str
    metrics: RunMetrics
    since: datetime | None = None
    """When this operator first looked at a run, since when it can tell what moves."""

    async def observe(self, key: Key) -> Observation | None:
        """The run as it stands now; None where it is gone or going."""
        self.since = self.since or datetime.now(UTC)
        observation = await observe(self.api, self.http, key, self.since)
        if observation is None:
            self.metrics.gone(key)
        return observation

    async def apply(self, key: Key, observation: Observation, plan: Plan | None, decision: Decision) -> None:
        """Makes the decision true: children, then the status in one write, then events."""
        await apply(self.api, self.trainer_image, key, observation, plan, decision)
        # Without a plan its spec cannot be read.
        spec = {} if plan is None else observation.document["spec"]
        self.metrics.saw(key, decision.status, spec, observation.gpus)

    async def keys(self, namespaces: Iterable[str]) -> list[Key]:
        """All runs in these namespaces; in the whole cluster where none is named."""
        found: list[Key] = []
        for namespace in tuple(namespaces) or (None,):
            query: dict[str, str | int] = {"limit": _PAGE}
            while True:
                page = await self.api.get(RUNS.path(namespace), **query)
                for run in page["items"]:
                    found.append(Key(run["metadata"]["namespace"], run["metadata"]["name"]))
                if not page["metadata"].get("continue"):
                    break
                query["continue"] = page["metadata"]["continue"]
        return found
