"""Kueue as a host process, installed while a test needs it and removed afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from local_cluster.build import build_all
from local_cluster.host_services import copy_certificates, service_to_host
from local_cluster.kubectl import Kubectl
from local_cluster.processes import Processes, answers
from local_cluster.programs import KUEUE, KUEUE_KINDS
from local_cluster.settings import Network

NAMESPACE = "kueue-system"
SERVICE = "kueue-webhook-service"
SECRET = "kueue-webhook-server-cert"
FRAMEWORKS = {"batch/job": "job", "kubeflow.org/pytorchjob": "pytorchjob"}
"""Kinds of jobs that it queues, and what its webhooks call them."""
CONVERTED = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")
"""Kinds of its own that it converts between versions."""
HEALTH_PORT = 8082


@contextmanager
def kueue(kubectl: Kubectl, work: Path, network: Network) -> Iterator[None]:
    """Kueue at work; `work` gets its logs, configuration and certificates.

    It is built where the cache lacks it, which takes ten minutes of one core: other tests do without.

    Raises:
        LocalClusterError: it could not be built.
        ComponentFailed: it did not become ready; the tail of its log is in the message.
    """
    build_all(programs=[KUEUE])
    processes = Processes(work)
    certificates, configuration = work / "certificates", work / "configuration.json"
    configuration.write_text(json.dumps(_configuration(network, certificates)))
    with ExitStack() as stack:
        stack.callback(kubectl, "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
        stack.callback(processes.kill)
        _install(kubectl, network, stack)
        manager = processes.start(
            "kueue",
            [
                KUEUE.folder() / "kueue",
                f"--config={configuration}",
                f"--kubeconfig={kubectl.kubeconfig}",
                "--zap-log-level=2",
            ],
        )
        processes.wait_until(
            manager,
            lambda: copy_certificates(kubectl, SECRET, NAMESPACE, certificates),
            "given certificates",
        )
        processes.wait_until(manager, lambda: answers(network.node_address, HEALTH_PORT, "/readyz"))
        yield


def _install(kubectl: Kubectl, network: Network, stack: ExitStack) -> None:
    """Creates what Kueue expects to find; `stack` removes it, its queues while it is there to let them go."""
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for objects in (_webhooks(), _definitions()):
        kubectl.apply(*objects)
        names = [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects]
        stack.callback(kubectl, "delete", *names, "--ignore-not-found", "--timeout=60s")
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
        *service_to_host(SERVICE, NAMESPACE, network.node_address, network.kueue_webhook_port),
    )


def _definitions() -> list[dict[str, Any]]:
    """Its kinds, as its own installation patches them."""
    found = []
    for kind in KUEUE_KINDS:
        definition = yaml.safe_load((KUEUE.folder() / f"kueue.x-k8s.io_{kind}.yaml").read_text())
        if kind in CONVERTED:
            service = {"namespace": NAMESPACE, "name": SERVICE, "path": "/convert"}
            definition["spec"]["conversion"] = {
                "strategy": "Webhook",
                "webhook": {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]},
            }
        found.append(definition)
    return found


def _webhooks() -> list[dict[str, Any]]:
    """Its webhook configurations, less the webhooks of frameworks that it is not to know here."""
    served = (*FRAMEWORKS.values(), "clusterqueue", "cohort", "resourceflavor", "workload")
    names = {f"{way}{kind}.kb.io" for way in "mv" for kind in served}
    found = []
    for configuration in yaml.safe_load_all((KUEUE.folder() / "manifests.yaml").read_text()):
        configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
        kept = [webhook for webhook in configuration["webhooks"] if webhook["name"] in names]
        for webhook in kept:
            webhook["clientConfig"]["service"] |= {"namespace": NAMESPACE, "name": SERVICE}
        found.append({**configuration, "webhooks": kept})
    return found


def _configuration(network: Network, certificates: Path) -> dict[str, Any]:
    """As Kueue reads it from its file: addresses of this host, and no more servers than the tests need."""
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": f"{network.node_address}:{HEALTH_PORT}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {
            "host": network.node_address,
            "port": network.kueue_webhook_port,
            "certDir": str(certificates),
        },
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {
            "enable": True,
            "webhookServiceName": SERVICE,
            "webhookSecretName": SECRET,
        },
        "integrations": {"frameworks": list(FRAMEWORKS)},
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
    }
