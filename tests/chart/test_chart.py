"""The chart, rendered and linted by helm: what it makes, what each value does, which rights it asks for."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bitnet_crds.schema import custom_resource_definition
from bitnet_operator.main import operate
from bitnet_operator.webhook import PATH

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "charts/bitnet-operator"
Manifest = dict[str, Any]
WEBHOOK = "trial-bitnet-operator-webhook"
"""Name of its Service, its Secret and its configuration."""


def helm(*arguments: str) -> str:
    """Runs helm, the one that scripts/install-chart-tools.sh fetched or the one on PATH."""
    cache = Path(os.environ.get("BITNET_CACHE") or Path.home() / ".cache/bitnet-operator")
    installed = cache / "bin/helm"
    program = str(installed) if installed.exists() else shutil.which("helm")
    assert program, "helm is missing: run scripts/install-chart-tools.sh"
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def render(*values: str) -> dict[str, Manifest]:
    """The manifests by kind, with the namespace where roles need it, and a second one with its name after it;
    with `--set` for each value."""
    options = [option for value in values for option in ("--set-json", value)]
    documents = yaml.safe_load_all(helm("template", "trial", str(CHART), "--namespace", "bitnet", *options))
    manifests: dict[str, Manifest] = {}
    for document in filter(None, documents):
        namespaced = document["kind"] in ("Role", "RoleBinding")
        key = f"{document['kind']} {document['metadata']['namespace']}" if namespaced else document["kind"]
        if key in manifests:
            key = f"{key} {document['metadata']['name'].removeprefix('trial-bitnet-operator-')}"
        assert key not in manifests
        manifests[key] = document
    return manifests


def container(manifests: dict[str, Manifest]) -> Manifest:
    """The operator's container."""
    (found,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def test_what_an_ordinary_release_makes() -> None:
    assert set(render()) == {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Role bitnet",
        "Role bitnet webhook",
        "RoleBinding bitnet",
        "RoleBinding bitnet webhook",
        "Secret",
        "Service",
        "Service webhook",
        "ServiceAccount",
        "ValidatingWebhookConfiguration",
    }


def test_the_definition_is_the_generated_one() -> None:
    rendered = render()["CustomResourceDefinition"]
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered["metadata"].pop("labels")
    assert rendered == custom_resource_definition()


def test_crds() -> None:
    assert "CustomResourceDefinition" not in render("crds.enabled=false")
    assert "annotations" not in render("crds.keep=false")["CustomResourceDefinition"]["metadata"]


def test_the_operator_runs_with_nothing_it_does_not_need() -> None:
    pod = render()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(render())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_replicas_share_a_lease_and_nothing_else_in_their_namespace() -> None:
    for manifests in (render(), render("replicas=2")):
        args = container(manifests)["args"]
        assert "--own-namespace=bitnet" in args
        assert "--lease-name=trial-bitnet-operator" in args
        assert manifests["Role bitnet"]["rules"] == [
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": ["trial-bitnet-operator"],
                "verbs": ["get", "patch"],
            },
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        ]
        binding = manifests["RoleBinding bitnet"]
        assert binding["roleRef"]["name"] == manifests["Role bitnet"]["metadata"]["name"]


def test_several_replicas_are_kept_apart_and_drained_one_at_a_time() -> None:
    one, two = render(), render("replicas=2")
    assert (one["Deployment"]["spec"]["replicas"], two["Deployment"]["spec"]["replicas"]) == (1, 2)
    assert "PodDisruptionBudget" not in one
    assert "affinity" not in one["Deployment"]["spec"]["template"]["spec"]
    budget = two["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    template = two["Deployment"]["spec"]["template"]
    (apart,) = template["spec"]["affinity"]["podAntiAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    for selector in (budget["selector"], apart["podAffinityTerm"]["labelSelector"]):
        assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_probes_and_ports_are_those_of_the_command() -> None:
    found = container(render())
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert f"--metrics-port={ports['metrics']}" in found["args"]
    assert f"--health-port={ports['health']}" in found["args"]
    assert found["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert render()["Service"]["spec"]["ports"][0]["targetPort"] == "metrics"


def test_the_command_knows_every_option() -> None:
    app = typer.Typer()
    app.command()(operate)
    known = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    values = ('watchNamespaces=["a"]', "webhook.certManager.enabled=true")
    options = {argument.split("=")[0] for argument in container(render(*values))["args"]}
    assert "--namespace" in options
    assert options <= known


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['image={"repository":"images/operator","tag":"1.2"}'], "images/operator:1.2"),
        (['image={"repository":"images/operator"}'], "images/operator:0.1.0"),
    ],
)
def test_image(values: list[str], expected: str) -> None:
    assert container(render(*values))["image"] == expected


def test_values_reach_the_command() -> None:
    args = container(render('trainerImage={"repository":"t","tag":"9"}', "progressIntervalSeconds=5"))["args"]
    assert "--trainer-image=t:9" in args
    assert "--progress-interval=5" in args
    assert not any(argument.startswith("--namespace") for argument in args)


def test_watched_namespaces_get_the_rights_and_the_cluster_does_not() -> None:
    manifests = render('watchNamespaces=["a","b"]')
    args = container(manifests)["args"]
    assert "--namespace=a" in args
    assert "--namespace=b" in args
    everywhere = render()["ClusterRole"]["rules"]
    assert manifests["Role a"]["rules"] == manifests["Role b"]["rules"] == everywhere[2:]
    for rule in manifests["ClusterRole"]["rules"]:
        assert set(rule["verbs"]) <= {"list", "watch"} or rule["resourceNames"] == [WEBHOOK]
    subject = {"kind": "ServiceAccount", "name": "trial-bitnet-operator", "namespace": "bitnet"}
    for namespace in ("a", "b"):
        assert manifests[f"RoleBinding {namespace}"]["subjects"] == [subject]


def test_rights_are_few() -> None:
    """A new right is a decision: it is written down here too."""
    rights = {
        f"{group or 'core'}/{resource}": rule["verbs"]
        for rule in render()["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rights == {
        "apiextensions.k8s.io/customresourcedefinitions": ["list", "watch"],
        "admissionregistration.k8s.io/validatingwebhookconfigurations": ["get", "patch"],
        "bitnet.training/bitnetruns": ["get", "list", "watch", "patch"],
        "bitnet.training/bitnetruns/status": ["patch"],
        "bitnet.training/bitnetruns/finalizers": ["update"],
        "kubeflow.org/pytorchjobs": ["get", "list", "watch", "create", "delete"],
        "batch/jobs": ["get", "list", "watch", "create", "delete"],
        "core/pods": ["list", "watch", "patch"],
        "core/configmaps": ["get", "create", "delete"],
        "core/services": ["get", "create", "delete"],
        "core/events": ["create"],
    }


def test_the_api_server_asks_a_service_that_leads_to_the_operators_port() -> None:
    manifests = render()
    (hook,) = manifests["ValidatingWebhookConfiguration"]["webhooks"]
    service = hook["clientConfig"]["service"]
    assert service == {"name": WEBHOOK, "namespace": "bitnet", "path": f"/{PATH}", "port": 443}
    assert manifests["Service webhook"]["metadata"]["name"] == WEBHOOK
    assert manifests["Service webhook"]["spec"]["ports"][0]["targetPort"] == "webhook"
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert f"--webhook-port={ports['webhook']}" in container(manifests)["args"]
    assert f"--webhook-name={WEBHOOK}" in container(manifests)["args"]
    assert (hook["failurePolicy"], hook["timeoutSeconds"], hook["sideEffects"]) == ("Ignore", 5, "None")
    (rule,) = hook["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE", "UPDATE"], ["bitnetruns"])
    assert "namespaceSelector" not in hook


def test_the_webhook_asks_about_watched_namespaces_alone_and_may_be_strict() -> None:
    manifests = render('watchNamespaces=["a","b"]', 'webhook.failurePolicy="Fail"')
    (hook,) = manifests["ValidatingWebhookConfiguration"]["webhooks"]
    (selected,) = hook["namespaceSelector"]["matchExpressions"]
    assert selected == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert hook["failurePolicy"] == "Fail"


def test_the_operators_own_certificate_is_kept_in_a_secret_that_it_may_fill() -> None:
    manifests = render()
    assert manifests["Secret"]["metadata"]["name"] == WEBHOOK
    assert not {"data", "stringData"} & set(manifests["Secret"])
    assert manifests["Role bitnet webhook"]["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [WEBHOOK], "verbs": ["get", "patch"]}
    ]
    assert manifests["RoleBinding bitnet webhook"]["roleRef"]["name"] == WEBHOOK


def test_cert_manager_makes_the_certificate_where_it_is_asked_to() -> None:
    manifests = render("webhook.certManager.enabled=true")
    assert not {"Secret", "Role bitnet webhook", "RoleBinding bitnet webhook"} & set(manifests)
    assert not any("admissionregistration" in str(rule) for rule in manifests["ClusterRole"]["rules"])
    certificate = manifests["Certificate"]["spec"]
    assert certificate["dnsNames"] == [f"{WEBHOOK}.bitnet.svc"]
    assert certificate["issuerRef"] == {"kind": "Issuer", "name": manifests["Issuer"]["metadata"]["name"]}
    annotations = manifests["ValidatingWebhookConfiguration"]["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": f"bitnet/{WEBHOOK}"}
    (mount,) = [each for each in container(manifests)["volumeMounts"] if each["name"] == "webhook"]
    assert f"--webhook-certificates={mount['mountPath']}" in container(manifests)["args"]
    volumes = manifests["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "webhook", "secret": {"secretName": certificate["secretName"]}} in volumes
    given = render('webhook.certManager={"enabled":true,"issuerRef":{"name":"ca","kind":"ClusterIssuer"}}')
    assert "Issuer" not in given
    assert given["Certificate"]["spec"]["issuerRef"] == {"name": "ca", "kind": "ClusterIssuer"}


def test_without_the_webhook_nothing_of_it_is_there() -> None:
    for cert_manager in ("false", "true"):
        manifests = render("webhook.enabled=false", f"webhook.certManager.enabled={cert_manager}")
        del manifests["CustomResourceDefinition"]
        assert "webhook" not in str(manifests).lower()
        assert {"Secret", "Certificate", "Issuer", "Service webhook"}.isdisjoint(manifests)


def test_service_account() -> None:
    given = render('serviceAccount={"create":false,"name":"mine"}')
    assert "ServiceAccount" not in given
    assert given["Deployment"]["spec"]["template"]["spec"]["serviceAccountName"] == "mine"
    assert given["ClusterRoleBinding"]["subjects"][0]["name"] == "mine"
    annotated = render('serviceAccount.annotations={"a":"b"}')
    assert annotated["ServiceAccount"]["metadata"]["annotations"] == {"a": "b"}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("serviceAccount.create=false")
    assert "name an existing one in serviceAccount.name" in refused.value.stderr


def test_metrics_service() -> None:
    assert "Service" not in render("metrics.service.enabled=false", "webhook.enabled=false")
    annotated = render('metrics.service.annotations={"prometheus.io/scrape":"true"}')
    assert annotated["Service"]["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}


def test_resources_and_pull_secrets() -> None:
    manifests = render('resources={"limits":{"memory":"1Gi"}}', 'imagePullSecrets=[{"name":"s"}]')
    assert container(manifests)["resources"]["limits"] == {"memory": "1Gi"}
    assert manifests["Deployment"]["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "s"}]


@pytest.mark.parametrize(
    "value", ["replicas=0", 'image.tga="1"', 'watchNamespaces="a"', "progressIntervalSeconds=0"]
)
def test_an_unknown_or_wrong_value_is_refused(value: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(value)
    assert value.split("=")[0].split(".")[-1] in refused.value.stderr


def test_every_value_has_a_schema() -> None:
    def walk(values: Any, schema: Any, path: str) -> None:
        assert schema is not None, path
        if isinstance(values, dict) and "properties" in schema:
            assert schema["additionalProperties"] is False, path
            for name, value in values.items():
                walk(value, schema["properties"].get(name), f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    walk(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
