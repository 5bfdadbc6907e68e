"""The API server, asked in plain JSON over the Kubernetes client's connection, login and token renewal."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import yaml
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException

from bitnet_crds.spec import API_GROUP, API_VERSION

FIELD_MANAGER = "bitnet-operator"
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Resource:
    """A kind of object, by its place in the API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, of a namespace's, or (with neither) of the whole cluster's."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        parts += ["namespaces", namespace, self.plural] if namespace else [self.plural]
        return "/" + "/".join([*parts, *filter(None, [name, subresource])])


RUNS = Resource(API_GROUP, API_VERSION.removeprefix(f"{API_GROUP}/"), "bitnetruns")
PODS = Resource("", "v1", "pods")
CONFIG_MAPS = Resource("", "v1", "configmaps")
EVENTS = Resource("", "v1", "events")
SERVICES = Resource("", "v1", "services")


def is_owned(manifest: Mapping[str, Any], uid: str) -> bool:
    """Whether an object belongs to the owner of that uid. A name alone may be an earlier owner's."""
    return any(owner["uid"] == uid for owner in manifest["metadata"].get("ownerReferences", []))


class ApiError(Exception):
    """The API server refused, in the server's own words; or it did not answer, with 0 for `status`."""

    def __init__(
        self, status: int, message: str, causes: tuple[str, ...] = (), missing: str | None = None
    ) -> None:
        self.status = status
        self.causes = causes
        """Reasons below the status, such as `NamespaceTerminating`."""
        self.missing = missing
        """Name of the object that is not there; None where its whole kind is not."""
        super().__init__(message)

    @property
    def is_missing_kind(self) -> bool:
        """Whether the API server knows no such kind; of one that it knows it names what is not there."""
        return self.status == HTTPStatus.NOT_FOUND and self.missing is None

    @property
    def passing(self) -> bool:
        """Whether the world is merely changing: looked at afresh, the question will be another one."""
        return (
            self.status == HTTPStatus.CONFLICT
            or "NamespaceTerminating" in self.causes
            # What was observed a moment ago, a run or its namespace, was deleted meanwhile.
            or self.missing is not None
        )


class Api:
    """One connection pool to one API server. Every method raises ApiError where the server refuses."""

    def __init__(
        self, connection: client.ApiClient, may_write: Callable[[], float] = lambda: TIMEOUT_SECONDS
    ) -> None:
        self._connection = connection
        self._may_write = may_write

    def fenced(self, may_write: Callable[[], float]) -> "Api":
        """The same server, for one who may write only at times: each write asks first in how many seconds it
        has to be done, and goes out no more where `may_write` raises. One that gets no answer asks again."""
        return Api(self._connection, may_write)

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """An object, or a list with `labelSelector`, `limit` and `continue` as query."""
        return await self._request("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Creates an object in the collection at `path`; fields that its kind does not have are refused."""
        return await self._request(
            "POST", path, {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}, body
        )

    async def merge_patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merges `body` into the object at `path` (RFC 7386)."""
        return await self._request(
            "PATCH", path, {"fieldManager": FIELD_MANAGER}, body, "application/merge-patch+json"
        )

    async def delete(self, path: str) -> dict[str, Any]:
        """Deletes the object at `path`, which is gone once all that it owns is."""
        return await self._request("DELETE", path, {"propagationPolicy": "Foreground"})

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        request = await self._connection.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        # Asked last: a token may have been renewed before, which takes its time.
        seconds = TIMEOUT_SECONDS if method == "GET" else min(TIMEOUT_SECONDS, self._may_write())
        try:
            response = await self._connection.call_api(*request, _request_timeout=seconds)
            content = await response.read()  # type: ignore[no-untyped-call]
        except (ApiException, aiohttp.ClientError, TimeoutError) as error:
            if method != "GET":
                self._may_write()  # where the right to write ended meanwhile, nobody is to hear of a fault
            said = str(error) or type(error).__name__
            raise ApiError(0, f"the API server does not answer ({said}). Try `kubectl get bnr`.") from error
        answer: dict[str, Any] = _json(content)
        if not 200 <= response.status <= 299:
            message = answer.get("message") or f"{response.status} {response.reason}"
            details = answer.get("details") or {}
            causes = tuple(cause.get("reason", "") for cause in details.get("causes") or [])
            missing = details.get("name") if response.status == HTTPStatus.NOT_FOUND else None
            raise ApiError(response.status, message, causes, missing)
        return answer


def _json(content: bytes) -> dict[str, Any]:
    """The answer as JSON; a proxy in between may answer with a page instead."""
    try:
        answer = json.loads(content)
    except ValueError:
        return {"message": content.decode(errors="replace")}
    return answer if isinstance(answer, dict) else {"message": str(answer)}


@asynccontextmanager
async def connect() -> AsyncIterator[Api]:
    """Opens the connection, with the pod's service account or, outside a cluster, the kubeconfig.

    Raises ApiError where there is neither.
    """
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except ConfigException:
        try:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
        # An empty kubeconfig is a TypeError to the client, and one that is no YAML a YAMLError.
        except (ConfigException, TypeError, yaml.YAMLError) as error:
            message = f"no cluster to talk to ({error}). Set KUBECONFIG to a kubeconfig, or run in a pod."
            raise ApiError(0, message) from error
    async with client.ApiClient() as connection:
        yield Api(connection)
