"""What lets the API server call webhooks of processes of this host, as it calls those of pods."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from local_cluster.kubectl import Kubectl

CERTIFICATES = ("ca.crt", "ca.key", "tls.crt", "tls.key")
"""In a Secret that a controller fills for itself."""


def service_to_host(name: str, namespace: str, address: str, port: int) -> list[dict[str, Any]]:
    """A Service, port 443, that leads to a process of the host: so may the API server call its webhook."""
    metadata = {"name": name, "namespace": namespace}
    ports = [{"name": "https", "port": 443, "targetPort": port, "protocol": "TCP"}]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]


def copy_certificates(kubectl: Kubectl, secret: str, namespace: str, folder: Path) -> bool:
    """Copies a Secret's certificates to where a pod would have it mounted.

    Returns False while the Secret is still empty.
    """
    data: dict[str, str] = kubectl.get("secret", secret, "--namespace", namespace).get("data") or {}
    if not all(data.get(name) for name in CERTIFICATES):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for name in CERTIFICATES:
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(base64.b64decode(data[name]))
    return True
