"""leader: holds a Lease (coordination.k8s.io/v1) for this replica, and is the fence before its writes.

The Kubernetes client has an election too (`kubernetes.aio.leaderelection`). It cannot stop a write whose
lease is over, does not give the lease up on a clean stop, measures with the wall clock, which may be set
back, writes local time as UTC, and ends where a connection fails once. What is done here, `election` decides.
"""

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bitnet_operator.api import Api, ApiError, Resource
from bitnet_operator.election import LEASE_SECONDS, RETRY_SECONDS, Candidate, Lease, Step

log = logging.getLogger(__name__)

LEASES = Resource("coordination.k8s.io", "v1", "leases")
LOOK_SECONDS = 5.0
"""For one look at the lease and what follows from it: a connection that hangs must not outlast the lease."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class NotLeadingError(Exception):
    """Nothing may be written: another replica leads, or may."""


class Leadership:
    """This replica's part in the election: `gain` it, `keep` it, `release` it.

    Belongs to one event loop. `remaining` is the fence: whoever writes asks it right before.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        looked: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`looked` is called whenever a standby could read the lease."""
        self._api = api
        self._collection = LEASES.path(namespace)
        self._path = LEASES.path(namespace, name)
        self._name = name
        self._looked = looked
        self._clock = clock
        self._candidate = Candidate(identity)

    @property
    def leads(self) -> bool:
        """Whether this replica leads, now."""
        return self._candidate.remaining(self._clock()) > 0

    def remaining(self) -> float:
        """Seconds in which a write has to be done. Raises NotLeadingError where there are none."""
        seconds = self._candidate.remaining(self._clock())
        if seconds <= 0:
            raise NotLeadingError(f"{self._candidate.identity} does not lead")
        return seconds

    async def gain(self) -> None:
        """Returns once this replica leads."""
        log.info("%s stands by for lease %s", self._candidate.identity, self._path)
        while not self.leads:
            await self._look()
            if not self.leads:
                await asyncio.sleep(RETRY_SECONDS)
        log.info("%s leads", self._candidate.identity)

    async def keep(self) -> None:
        """Renews, and returns once this replica leads no more."""
        while self.leads:
            await asyncio.sleep(min(RETRY_SECONDS, self._candidate.remaining(self._clock())))
            if self.leads:
                await self._look()
        self._candidate = self._candidate.stopped()
        log.error("%s leads no more", self._candidate.identity)

    async def release(self) -> None:
        """Gives the lease up, where this replica holds it, so that another begins at once.

        Everything that writes has ended before.
        """
        if not self.leads:
            return
        self._candidate = self._candidate.stopped()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                manifest = await self._api.get(self._path)
                if _lease(manifest).holder == self._candidate.identity:
                    await self._write(manifest, {"holderIdentity": ""})
        except (ApiError, TimeoutError) as error:
            log.warning("the lease was not given up (%s): it ends by itself", _said(error))
        else:
            log.info("%s gave the lease up", self._candidate.identity)

    async def _look(self) -> None:
        """Reads the lease once and does what follows; what fails is tried at the next look."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._advance()
        except (ApiError, TimeoutError) as error:
            log.warning("no look at lease %s: %s", self._path, _said(error))

    async def _advance(self) -> None:
        manifest = await self._read()
        if not self.leads:
            self._looked()
        lease, sent = None if manifest is None else _lease(manifest), self._clock()
        self._candidate = self._candidate.sees(lease, sent)
        step = self._candidate.step(lease, sent)
        if step is Step.LOST:
            self._candidate = self._candidate.stopped()
        if step in (Step.LOST, Step.WAIT):
            return
        now = _micro_time()
        spec: dict[str, str | int] = {
            "holderIdentity": self._candidate.identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "renewTime": now,
        }
        if step is not Step.RENEW:
            spec |= {"acquireTime": now, "leaseTransitions": _transitions(manifest) + 1}
        try:
            if manifest is None:
                await self._api.create(self._collection, {"metadata": {"name": self._name}, "spec": spec})
            else:
                await self._write(manifest, spec)
        except ApiError as error:
            # Somebody else wrote since it was read: what it holds now is for the next look.
            if error.status != HTTPStatus.CONFLICT:
                raise
            log.info("lease %s was written meanwhile", self._path)
        else:
            self._candidate = self._candidate.wrote(sent)

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._api.get(self._path)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None

    async def _write(self, manifest: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        version = manifest["metadata"]["resourceVersion"]
        await self._api.merge_patch(self._path, {"metadata": {"resourceVersion": version}, "spec": spec})


def own_identity() -> str:
    """The pod's name, which is its host name, and something that no earlier process in it had."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


def pod_namespace() -> str | None:
    """The pod's namespace; None outside a pod."""
    try:
        return _POD_NAMESPACE.read_text().strip()
    except FileNotFoundError:
        return None


def _lease(manifest: Mapping[str, Any]) -> Lease:
    spec = manifest.get("spec") or {}
    seconds = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
    return Lease(spec.get("holderIdentity") or "", manifest["metadata"]["resourceVersion"], seconds)


def _transitions(manifest: Mapping[str, Any] | None) -> int:
    """How often the lease has passed to another; -1 before it was made."""
    return -1 if manifest is None else int((manifest.get("spec") or {}).get("leaseTransitions") or 0)


def _micro_time() -> str:
    """Now, as a MicroTime of Kubernetes: only people read it, never another replica's clock."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _said(error: Exception) -> str:
    return str(error) or "no answer in time"
