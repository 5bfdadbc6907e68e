"""examples/prometheus.yml for a Prometheus that cannot ask Kubernetes, as Debian's: pods come from a file."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/prometheus.yml"
JOBS = ("bitnet-operator", "bitnet-trainer")


def configuration(pods: Path, **changes: Any) -> dict[str, Any]:
    """The example with all of its relabelling, of pods that `write_pods` wrote to this file instead of those
    that Prometheus finds itself; `changes` are of its global part."""
    config: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    config["global"] |= changes
    for job in config["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["file_sd_configs"] = [{"files": [str(pods)], "refresh_interval": "1s"}]
    return config


def write_pods(path: Path, pods: Iterable[Mapping[str, Any]]) -> None:
    """Writes what discovery finds of these pods, as the API server gives them, for `file_sd_configs`."""
    path.write_text(json.dumps([group for pod in pods for group in _found(pod)]))


def _found(pod: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One target for each port that a container declares, as Prometheus' role `pod` has it."""
    metadata, status = pod["metadata"], pod.get("status", {})
    of_pod = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_phase": status.get("phase", ""),
    }
    for kind in ("label", "annotation"):
        for name, value in (metadata.get(f"{kind}s") or {}).items():
            of_pod[f"__meta_kubernetes_pod_{kind}_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}"] = value
    if not (address := status.get("podIP")):
        return
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            of_port = {
                "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
                "__meta_kubernetes_pod_container_port_number": str(port["containerPort"]),
            }
            yield {"targets": [f"{address}:{port['containerPort']}"], "labels": of_pod | of_port}
