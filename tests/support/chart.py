"""The chart as the tests render it: helm, the manifests by kind, and the matrix of values."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from chart_tools import program

CHART = Path(__file__).resolve().parents[2] / "charts/bitnet-operator"
RELEASE, NAMESPACE = "trial", "bitnet"
NAME = "trial-bitnet-operator"
"""The full name of what the release makes."""
Manifest = dict[str, Any]

PROMETHEUS_OPERATOR = tuple(
    f"monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule", "ServiceMonitor")
)
MANAGED_PROMETHEUS = tuple(
    f"monitoring.googleapis.com/v1/{kind}" for kind in ("ClusterPodMonitoring", "ClusterRules")
)
CLUSTER_WIDE = {
    *("ClusterPodMonitoring", "ClusterRole", "ClusterRoleBinding", "ClusterRules"),
    *("CustomResourceDefinition", "ValidatingWebhookConfiguration"),
}
"""Kinds without a namespace."""


@dataclass(frozen=True)
class Given:
    """What a release is rendered with."""

    values: tuple[str, ...] = ()
    """`--set-json` of each."""
    apis: tuple[str, ...] = ()
    """`group/version/Kind` of what the cluster has beside Kubernetes' own."""
    files: tuple[str, ...] = ()
    """Values files of the chart."""
    release: str = RELEASE
    namespace: str = NAMESPACE

    def options(self) -> list[str]:
        """As helm's command line has them."""
        options = [option for name in self.files for option in ("--values", str(CHART / name))]
        options += [option for value in self.values for option in ("--set-json", value)]
        return options + [option for api in self.apis for option in ("--api-versions", api)]


MATRIX = {
    "as it comes": Given(),
    "one replica": Given(("replicas=1",)),
    "no budget": Given(("podDisruptionBudget.enabled=false",)),
    "a long name": Given(release="a-release-with-a-name-of-fifty-three-characters-0123x"),
    "a name of its own": Given(('fullnameOverride="mine"',)),
    "names that are other things in YAML": Given(
        (
            'fullnameOverride="no"',
            'watchNamespaces=["on","1e3"]',
            'serviceAccount.name="0"',
            'priorityClassName="1"',
            'dashboards.namespace="true"',
            'grafanaAlerts={"enabled":true,"namespace":"2"}',
        ),
        PROMETHEUS_OPERATOR,
        release="123",
        namespace="null",
    ),
    "watched namespaces": Given(('watchNamespaces=["a","b"]',)),
    "watched, without admission": Given(('watchNamespaces=["a"]', "webhook.enabled=false")),
    "images by digest": Given(
        tuple(f'{name}={{"tag":"1","digest":"sha256:{"0" * 64}"}}' for name in ("image", "trainerImage"))
    ),
    "placed": Given(
        (
            'nodeSelector={"pool":"system"}',
            'tolerations=[{"key":"CriticalAddonsOnly","operator":"Exists"}]',
            'affinity={"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":'
            '{"matchExpressions":[{"key":"pool","operator":"Exists"}]}}]}}',
            'topologySpreadConstraints=[{"maxSkew":2,"topologyKey":"rack","whenUnsatisfiable":"DoNotSchedule",'
            '"labelSelector":{"matchLabels":{"a":"b"}}}]',
            'priorityClassName="system-cluster-critical"',
            'podLabels={"team":"a"}',
            'podAnnotations={"note":"b"}',
            'imagePullSecrets=[{"name":"pull-secret"}]',
        )
    ),
    "spread by nobody": Given(("topologySpreadConstraints=[]",)),
    "users of its own": Given(("hostUsers=false",)),
    "the kind from elsewhere": Given(("crds.enabled=false",)),
    "the kind goes too": Given(("crds.keep=false",)),
    "an account from elsewhere": Given(('serviceAccount={"create":false,"name":"mine"}',)),
    "an account with annotations": Given(('serviceAccount={"name":"mine","annotations":{"a":"b"}}',)),
    "roles not aggregated": Given(("aggregatedRoles=false",)),
    "no metrics service": Given(("metrics.service.enabled=false",)),
    "no metrics service, scraped all the same": Given(
        ("metrics.service.enabled=false",), PROMETHEUS_OPERATOR + MANAGED_PROMETHEUS
    ),
    "no admission": Given(("webhook.enabled=false",)),
    "strict admission": Given(('webhook.failurePolicy="Fail"',)),
    "cert-manager": Given(("webhook.certManager.enabled=true",)),
    "cert-manager's issuer": Given(
        ('webhook.certManager={"enabled":true,"issuerRef":{"name":"ca","kind":"ClusterIssuer"}}',)
    ),
    "no network policy": Given(("networkPolicy.enabled=false",)),
    "egress limited": Given(("networkPolicy.egress=true",)),
    "egress to one address": Given(
        (
            'networkPolicy={"egress":true,"apiServerCidrs":["172.16.0.2/32"],"apiServerPorts":[443]}',
            "webhook.enabled=false",
        )
    ),
    "the Prometheus operator": Given((), PROMETHEUS_OPERATOR),
    "the Prometheus operator, watched namespaces": Given(
        ('watchNamespaces=["a","b"]', 'monitoring.labels={"release":"prometheus"}'), PROMETHEUS_OPERATOR
    ),
    "Managed Prometheus": Given((), MANAGED_PROMETHEUS),
    "both": Given((), PROMETHEUS_OPERATOR + MANAGED_PROMETHEUS),
    "neither, though both are there": Given(
        tuple(
            f"monitoring.{name}.enabled=false"
            for name in (
                *("serviceMonitor", "podMonitor", "prometheusRule"),
                *(f"managedPrometheus.{each}" for each in ("operator", "trainers", "rules")),
            )
        ),
        PROMETHEUS_OPERATOR + MANAGED_PROMETHEUS,
    ),
    "no dashboards": Given(("dashboards.enabled=false",)),
    "Grafana elsewhere": Given(
        (
            'dashboards={"namespace":"grafana","label":"dash","labelValue":"yes","folder":"Training"}',
            'grafanaAlerts={"enabled":true,"namespace":"grafana"}',
        )
    ),
    "GKE": Given((), MANAGED_PROMETHEUS, ("values-gke.yaml",)),
    "GKE, kinds not installed yet": Given((), (), ("values-gke.yaml",)),
    "GKE, cert-manager": Given(
        ("webhook.certManager.enabled=true",), MANAGED_PROMETHEUS, ("values-gke.yaml",)
    ),
}


@cache
def helm(*arguments: str) -> str:
    """What helm prints."""
    return subprocess.run([program("helm"), *arguments], check=True, capture_output=True, text=True).stdout


def manifests(given: Given, *options: str, chart: Path = CHART) -> list[Manifest]:
    """All that a release is made of, the objects of `helm test` too."""
    rendered = helm(
        "template", given.release, str(chart), "--namespace", given.namespace, *given.options(), *options
    )
    return [document for document in yaml.load_all(rendered, yaml.CSafeLoader) if document]


def render(
    *values: str, apis: Iterable[str] = (), files: Iterable[str] = (), chart: Path = CHART
) -> dict[str, Manifest]:
    """The manifests of the release `trial`, less those of `helm test`: each by its kind, then its namespace
    where that is not the release's, then what its name has beside the release's full name."""
    found: dict[str, Manifest] = {}
    for manifest in manifests(Given(values, tuple(apis), tuple(files)), "--skip-tests", chart=chart):
        metadata = manifest["metadata"]
        words = [manifest["kind"]]
        if metadata.get("namespace", NAMESPACE) != NAMESPACE:
            words.append(metadata["namespace"])
        if manifest["kind"] != "CustomResourceDefinition":
            words.append(metadata["name"].removeprefix(NAME).removeprefix("-"))
        key = " ".join(filter(None, words))
        assert key not in found
        found[key] = manifest
    return found


def pod(found: dict[str, Manifest]) -> Manifest:
    """The spec of the operator's pods."""
    return dict(found["Deployment"]["spec"]["template"]["spec"])


def container(found: dict[str, Manifest]) -> Manifest:
    """The operator's container."""
    (only,) = pod(found)["containers"]
    return dict(only)


def pods(found: Iterable[Manifest]) -> list[Manifest]:
    """Every pod that a release makes, as a Pod."""
    made = []
    for manifest in found:
        if manifest["kind"] == "Pod":
            made.append(manifest)
        elif manifest["kind"] == "Deployment":
            template = manifest["spec"]["template"]
            metadata = {**template["metadata"], "name": "pod-of-its-template"}
            metadata["namespace"] = manifest["metadata"]["namespace"]
            made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return made
