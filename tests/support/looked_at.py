"""One run behind a small API server, and the operator's whole look at it: observe, decide, apply."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bitnet_operator.api import ApiError
from bitnet_operator.case import Settings
from bitnet_operator.cluster import Cluster
from bitnet_operator.observation import Key
from bitnet_operator.reconcile import reconcile
from runs_api import RunsApi
from small_run import START

KEY = Key("team", "small")
RUN = "/apis/bitnet.training/v1alpha1/namespaces/team/bitnetruns/small"
JOBS = "/apis/batch/v1/namespaces/team/jobs"
PODS = "/api/v1/namespaces/team/pods"


@dataclass
class LookedAt:
    """The server, and the operator's look at the one run."""

    server: RunsApi
    cluster: Cluster
    now: datetime = START

    async def look(self) -> float | None:
        self.now += timedelta(seconds=1)
        return await reconcile(self.cluster, KEY, self.now, Settings())

    async def look_as_the_queue_does(self) -> None:
        """Whatever is merely passing is looked at again."""
        try:
            await self.look()
        except ApiError as error:
            if not error.passing:
                raise

    @property
    def run(self) -> dict[str, Any]:
        return self.server.objects[RUN]

    @property
    def finalizers(self) -> list[str]:
        return list(self.run["metadata"].get("finalizers") or [])

    def edit(self, **spec: Any) -> None:
        """A person changes the spec."""
        metadata = self.run["metadata"] | {"generation": self.run["metadata"]["generation"] + 1}
        self.server.put(RUN, self.run | {"metadata": metadata, "spec": self.run["spec"] | spec})

    def pod(self, job: str) -> str:
        """A pod of a job comes up; its path."""
        owner, path = self.server.objects[job]["metadata"], f"{PODS}/{job.rpartition('/')[2]}-0-abcde"
        labels = {"bitnet.training/run": "small"}
        metadata = {"name": path.rpartition("/")[2], "labels": labels, "ownerReferences": [owner]}
        running = {"name": "pytorch", "state": {"running": {}}}
        status = {"phase": "Running", "containerStatuses": [running]}
        self.server.put(
            path,
            {
                "metadata": metadata,
                "spec": {"nodeName": "n", "containers": [{"name": "pytorch"}]},
                "status": status,
            },
        )
        return path

    def ends(self, job: str, condition: str) -> None:
        """A Job's controller says how it ended."""
        conditions = [{"type": condition, "status": "True", "message": "so it is"}]
        self.server.put(job, self.server.objects[job] | {"status": {"conditions": conditions}})

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.server.of("events")]
