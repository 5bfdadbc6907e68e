"""A small API server that kopf can start on: it tells its kinds, has empty lists, and watches say nothing."""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web

from small_api import Object, SmallApi

_KINDS = {
    "/api/v1": ["pods", "namespaces", "events"],
    "/apis/apiextensions.k8s.io/v1": ["customresourcedefinitions"],
    "/apis/batch/v1": ["jobs"],
    "/apis/bitnet.training/v1alpha1": ["bitnetruns"],
    "/apis/coordination.k8s.io/v1": ["leases"],
}


class KopfApi(SmallApi):
    """As small as can be for the operator's whole process."""

    async def answer(self, request: web.Request) -> web.StreamResponse:  # type: ignore[override]
        """One request."""
        path = request.path.rstrip("/")
        parent, _, plural = path.rpartition("/")
        if path == "/api":
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            return web.json_response({"kind": "APIGroupList", "groups": _groups()})
        if path in _KINDS:
            return web.json_response(
                _resources(path.removeprefix("/apis/").removeprefix("/api/"), _KINDS[path])
            )
        if request.method == "GET" and plural in _KINDS.get(parent, ()):
            if "watch" in request.query:
                watch = web.StreamResponse()
                await watch.prepare(request)
                await self.over.wait()
                return watch
            return web.json_response({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
        return await super().answer(request)

    def write_kubeconfig(self, path: Path) -> Path:
        """For whoever is to talk to it, while it is served."""
        content = {
            "clusters": [{"name": "small", "cluster": {"server": self.url}}],
            "users": [{"name": "user", "user": {"token": "any"}}],
            "contexts": [{"name": "small", "context": {"cluster": "small", "user": "user"}}],
            "current-context": "small",
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **content}))
        return path


def _groups() -> list[Object]:
    groups = []
    for place in _KINDS:
        _, _, rest = place.partition("/apis/")
        if rest:
            name, version = rest.split("/")
            served = {"groupVersion": rest, "version": version}
            groups.append({"name": name, "versions": [served], "preferredVersion": served})
    return groups


def _resources(group_version: str, plurals: list[str]) -> Object:
    verbs = ["get", "list", "watch", "create", "patch", "delete"]
    resources = [
        {"name": plural, "singularName": plural[:-1], "kind": plural, "namespaced": True, "verbs": verbs}
        for plural in plurals
    ]
    return {"kind": "APIResourceList", "groupVersion": group_version, "resources": resources}
