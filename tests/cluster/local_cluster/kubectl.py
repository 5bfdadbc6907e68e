"""Calls kubectl against one cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster.settings import without_proxy
from local_cluster.shell import find_program, run


@dataclass(frozen=True)
class Kubectl:
    """`kubectl("get", "pods")` returns stdout.

    Raises:
        CommandFailed: kubectl ended with an error; `stderr` holds its words.
    """

    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float | None = 120) -> str:
        command: list[str | Path] = [find_program("kubectl"), "--kubeconfig", self.kubeconfig, *arguments]
        return run(command, stdin=stdin, env=without_proxy(), timeout=timeout)

    def apply(self, *objects: dict[str, Any]) -> str:
        """Server-side apply of objects given as plain data."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self("apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=content)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … --output json`, parsed."""
        parsed: dict[str, Any] = json.loads(self("get", *arguments, "--output", "json"))
        return parsed
