"""Where a local cluster keeps its things and which addresses it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

PODS = IPv4Network("10.199.0.0/16")
SERVICES = IPv4Network("10.198.0.0/16")


def without_proxy() -> dict[str, str]:
    """Environment in which these addresses are reached directly, even where an HTTP proxy is set."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or "localhost,127.0.0.1"
    value = f"{given},{PODS},{SERVICES}"
    return {"NO_PROXY": value, "no_proxy": value}


def cache_folder() -> Path:
    """`$BITNET_CACHE`, or `~/.cache/bitnet-operator`."""
    return Path(os.environ.get("BITNET_CACHE") or Path.home() / ".cache" / "bitnet-operator")


def tools_folder() -> Path:
    """Where the install script puts kubectl and helm."""
    return cache_folder() / "bin"


@dataclass(frozen=True)
class Network:
    """Addresses of one cluster. Every server but etcd and the webhook listens on the bridge, so that ports
    seldom clash with another program's; pods reach processes of the host at `node_address`."""

    bridge: str = "bitnet0"
    """The network device pods hang on; it belongs to the cluster alone and goes when the cluster stops."""
    pods: IPv4Network = PODS
    """Addresses of pods; the first is the node's own."""
    services: IPv4Network = SERVICES
    """Addresses of Services; the first is the API server's own."""
    etcd_port: int = 12379
    """etcd listens on 127.0.0.1, for clients here and for peers on the next port."""
    webhook_port: int = 19443
    """The training operator's admission webhook; that program always takes every address of the host."""
    kueue_webhook_port: int = 19444
    """Kueue's, on the bridge."""
    storage_port: int = 19445
    """fake-gcs-server's, on the bridge."""

    @property
    def node_address(self) -> str:
        """The host as pods see it."""
        return str(self.pods[1])

    @property
    def api_address(self) -> str:
        """Same address and port (443) as the Service `kubernetes`, so pods need no kube-proxy to reach it."""
        return str(self.services[1])

    @property
    def api_url(self) -> str:
        return f"https://{self.api_address}:443"


@dataclass(frozen=True)
class Settings:
    """One local cluster's choices; the defaults serve a developer's machine and continuous integration."""

    network: Network = Network()
    node_name: str = "node-0"
    max_pods: int = 250
