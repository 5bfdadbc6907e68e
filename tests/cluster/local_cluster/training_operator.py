"""Kubeflow's training operator as a host process, its webhook behind a Service as in a real install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from local_cluster.control_plane import Command
from local_cluster.host_services import CERTIFICATES, copy_certificates, service_to_host
from local_cluster.images import HOST_IMAGE
from local_cluster.kubectl import Kubectl
from local_cluster.programs import PYTORCHJOB_CRD, TRAINING_OPERATOR
from local_cluster.settings import Network

NAMESPACE = "kubeflow"
SERVICE = "training-operator"
SECRET = "training-operator-webhook-cert"
CERTIFICATE_FOLDER = Path("/tmp/k8s-webhook-server/serving-certs")
"""Fixed in the operator's source; in a pod the Secret is mounted there."""
METRICS_PORT = 8080
HEALTH_PORT = 8081


def install(kubectl: Kubectl, network: Network) -> None:
    """Creates what the operator expects to find: its kinds, Service, Secret and webhook configuration."""
    crd = TRAINING_OPERATOR.folder() / Path(PYTORCHJOB_CRD.path).name
    kubectl("apply", "--server-side", "--filename", str(crd))
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}},
        *service_to_host(SERVICE, NAMESPACE, network.node_address, network.webhook_port),
        _webhook_configuration(),
    )


def _webhook_configuration() -> dict[str, Any]:
    """Jobs it finds invalid are refused; the operator adds its certificate authority by itself."""
    rule = {
        "apiGroups": ["kubeflow.org"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["pytorchjobs"],
    }
    webhook = {
        "name": "validator.pytorchjob.training-operator.kubeflow.org",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {
                "name": SERVICE,
                "namespace": NAMESPACE,
                "path": "/validate-kubeflow-org-v1-pytorchjob",
                "port": 443,
            }
        },
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "rules": [rule],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "validator.training-operator.kubeflow.org"},
        "webhooks": [webhook],
    }


def command(work: Path, network: Network, kubeconfig: Path) -> Command:
    """Workers' init container waits for the master's name, as the stock one does with nslookup."""
    init_container = [
        {
            "name": "init-pytorch",
            "image": HOST_IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/wait-for-name", "{{.MasterAddr}}"],
        }
    ]
    template = work / "init-container.json"
    template.write_text(json.dumps(init_container))
    return [
        TRAINING_OPERATOR.folder() / "training-operator",
        f"--kubeconfig={kubeconfig}",
        "--enable-scheme=pytorchjob",
        f"--pytorch-init-container-template-file={template}",
        f"--webhook-server-port={network.webhook_port}",
        f"--metrics-bind-address={network.node_address}:{METRICS_PORT}",
        f"--health-probe-bind-address={network.node_address}:{HEALTH_PORT}",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--controller-threads=4",
    ]


def hand_over_certificates(kubectl: Kubectl) -> bool:
    """Whether the operator has written its certificates; they are then where it waits for them."""
    return copy_certificates(kubectl, SECRET, NAMESPACE, CERTIFICATE_FOLDER)


def forget_certificates() -> None:
    """Removes those of an earlier cluster, which the operator would take for its own."""
    for name in CERTIFICATES:
        (CERTIFICATE_FOLDER / name).unlink(missing_ok=True)
