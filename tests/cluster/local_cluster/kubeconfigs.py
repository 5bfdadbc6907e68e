"""Kubeconfig files: for the cluster's own users, and for a ServiceAccount of it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from local_cluster.kubectl import Kubectl


def kubeconfig(server: str, authority: bytes, token: str, namespace: str = "default") -> str:
    """A kubeconfig with everything inside, as JSON (which is YAML too).

    Args:
        server: the API server's URL.
        authority: the certificate authority, PEM.
        token: the bearer token of the one user.
    """
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "local",
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(authority).decode(),
                },
            }
        ],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [
            {"name": "local", "context": {"cluster": "local", "user": "user", "namespace": namespace}}
        ],
        "current-context": "local",
    }
    return json.dumps(content, indent=2) + "\n"


def write_kubeconfig(path: Path, content: str) -> Path:
    """Writes `content` so that its owner alone can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(content)
    return path


def service_account_kubeconfig(
    kubectl: Kubectl, namespace: str, service_account: str, path: Path, duration: str = "2h"
) -> Path:
    """A kubeconfig whose user is a ServiceAccount, with just the rights that RBAC grants it.

    A program of the host runs with it as it would inside a pod under that ServiceAccount.

    Raises:
        CommandFailed: there is no such ServiceAccount.
    """
    token = kubectl("create", "token", service_account, "--namespace", namespace, "--duration", duration)
    view = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
    cluster = view["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster.get("certificate-authority-data", ""))
    content = kubeconfig(cluster["server"], authority, token.strip(), namespace)
    return write_kubeconfig(path, content)
