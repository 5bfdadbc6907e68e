"""A few objects behind HTTP, as the API server keeps them: by path and version, with faults at will."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from bitnet_operator.api import Api

Object = dict[str, Any]


class SmallApi:
    """What a test sees of it: `objects` by path."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.written: list[str] = []
        """Paths of all writes that arrived."""
        self.down = False
        self.hangs = False
        self.over = asyncio.Event()
        """What hangs goes on at the end."""
        self.url = ""
        """Where it answers, while it is served."""

    def put(self, path: str, content: Object) -> None:
        """Has it there, under a version of its own."""
        version = str(int(self.objects.get(path, {}).get("metadata", {}).get("resourceVersion", 0)) + 1)
        metadata = {**content.get("metadata", {}), "resourceVersion": version}
        self.objects[path] = {**content, "metadata": metadata}

    async def answer(self, request: web.Request) -> web.Response:
        """One request."""
        if self.hangs:
            await self.over.wait()
        if self.down:
            return _refused(500, "etcd is away")
        if request.method != "GET":
            self.written.append(request.path)
        path = request.path
        if request.method == "POST":
            body = await request.json()
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return _refused(409, "there is one")
            self.put(path, body)
        elif path not in self.objects:
            return _refused(404, "there is none")
        elif request.method == "PATCH":
            body = await request.json()
            if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
                return _refused(409, "it was changed")
            self.put(path, _merged(self.objects[path], body))
        return web.json_response(self.objects[path])

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Api]:
        """The operator's own client of it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with client.ApiClient(client.Configuration(host=self.url)) as connection:
            yield Api(connection)
        self.over.set()
        await runner.cleanup()


def _merged(before: Object, patch: Object) -> Object:
    """RFC 7386, less its nulls."""
    after = copy.copy(before)
    for key, value in patch.items():
        merges = isinstance(value, dict) and isinstance(after.get(key), dict)
        after[key] = _merged(after[key], value) if merges else value
    return after


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"message": message, "details": {"name": "it"}}, status=status)
