"""A small API server for whole reconciles: lists by label, finalizers, deletion, namespaces that end."""

from __future__ import annotations

import itertools
from typing import Any

from aiohttp import web

from small_api import Object, SmallApi


class RunsApi(SmallApi):
    """Objects by path, as `SmallApi`, with what a deletion goes through. No controller runs here: a test does
    what they would."""

    def __init__(self) -> None:
        super().__init__()
        self.namespace_ends = False
        """Whether nothing can be made any more."""
        self.refuses: str | None = None
        """What it says, with 422, to any Job."""
        self.forbids: str | None = None
        """What it says, with 403, to any Job."""
        self._numbers = itertools.count()

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        path = request.path.removesuffix("/status")
        if request.method == "GET" and path not in self.objects:
            return self._list(path, request.query.get("labelSelector"))
        if request.method != "GET":
            self.written.append(f"{request.method} {request.path}")
        if request.method == "POST":
            return self._create(path, await request.json())
        if path not in self.objects:
            return _refused(404, "there is none", name=path.rpartition("/")[2])
        if request.method == "PATCH":
            body = await request.json()
            version = body["metadata"].get("resourceVersion")
            if version not in (None, self.objects[path]["metadata"]["resourceVersion"]):
                return _refused(409, "it was changed", name="it")
            found = _merged(self.objects[path], body)
            self.put(path, found)
            if "deletionTimestamp" in found["metadata"]:
                self.delete(path)
            return web.json_response(found | {"metadata": self._metadata(path, found)})
        if request.method == "DELETE":
            found = self.objects[path]
            self.delete(path)
            return web.json_response(found)
        return web.json_response(self.objects[path])

    def delete(self, path: str) -> None:
        """Somebody deletes it: it is gone, or stays while it has a finalizer."""
        metadata = self.objects[path]["metadata"]
        metadata.setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        if not metadata.get("finalizers"):
            del self.objects[path]

    def of(self, plural: str) -> list[Object]:
        """All objects of a kind."""
        return [found for path, found in self.objects.items() if f"/{plural}/" in path]

    def _metadata(self, path: str, found: Object) -> Object:
        metadata: Object = self.objects.get(path, found)["metadata"]
        return metadata

    def _create(self, collection: str, body: Object) -> web.Response:
        if self.namespace_ends:
            return _refused(403, "namespace team is being terminated", causes=["NamespaceTerminating"])
        if self.refuses is not None and collection.endswith("/jobs"):
            return _refused(422, self.refuses)
        if self.forbids is not None and collection.endswith("/jobs"):
            return _refused(403, self.forbids)
        metadata = body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{next(self._numbers)}"
        path = f"{collection}/{name}"
        if path in self.objects:
            return _refused(409, "there is one", name=name)
        self.put(path, body | {"metadata": metadata | {"name": name, "uid": f"uid-{next(self._numbers)}"}})
        return web.json_response(self.objects[path])

    def _list(self, collection: str, selector: str | None) -> web.Response:
        below = [found for path, found in self.objects.items() if path.rpartition("/")[0] == collection]
        if selector is None and not below:
            return _refused(404, "there is none", name=collection.rpartition("/")[2])
        key, _, value = (selector or "").partition("=")
        items = [found for found in below if found["metadata"].get("labels", {}).get(key) == value]
        return web.json_response({"metadata": {}, "items": items})


def _merged(before: Object, patch: Object) -> Object:
    """RFC 7386."""
    after = dict(before)
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, dict) and isinstance(after.get(key), dict):
            after[key] = _merged(after[key], value)
        else:
            after[key] = value
    return after


def _refused(status: int, message: str, *, name: str = "it", causes: list[str] | None = None) -> web.Response:
    details: dict[str, Any] = {"name": name, "causes": [{"reason": cause} for cause in causes or []]}
    return web.json_response({"message": message, "details": details}, status=status)
