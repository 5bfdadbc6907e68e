"""A release as a whole: what it makes, its kind, names, network policy and notes, which values it takes."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from bitnet_crds.protocol import PROGRESS_PORT
from bitnet_crds.schema import custom_resource_definition
from chart import CHART, Given, container, helm, manifests, render


def test_lint_finds_nothing() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def test_what_an_ordinary_release_makes() -> None:
    made = {key for key in render() if not key.startswith("ConfigMap ")}
    assert made == {
        "ClusterRole",
        "ClusterRole edit",
        "ClusterRole view",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Role leader-election",
        "Role webhook",
        "RoleBinding leader-election",
        "RoleBinding webhook",
        "Secret webhook",
        "Service",
        "Service webhook",
        "ServiceAccount",
        "ValidatingWebhookConfiguration webhook",
    }


def test_the_definition_is_the_generated_one() -> None:
    rendered = render()["CustomResourceDefinition"]
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered["metadata"].pop("labels")
    assert rendered == custom_resource_definition()


def test_crds() -> None:
    assert "CustomResourceDefinition" not in render("crds.enabled=false")
    assert "annotations" not in render("crds.keep=false")["CustomResourceDefinition"]["metadata"]


def test_nothing_is_looked_up_in_the_cluster() -> None:
    """A release that is rendered without a cluster, as for GitOps, is the same."""
    for path in (CHART / "templates").rglob("*.*"):
        assert "lookup " not in path.read_text(), path


def test_a_full_name_may_be_given() -> None:
    names = {each["metadata"]["name"] for each in manifests(Given(('fullnameOverride="mine"',)))}
    assert {"mine", "mine-webhook", "mine-leader-election", "mine-test"} <= names
    assert not any("trial" in name for name in names)


def test_a_release_whose_name_no_service_can_have_is_told_the_mend() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        manifests(Given(release="123"))
    assert "the release is called 123, " in refused.value.stderr
    assert "write fullnameOverride" in refused.value.stderr


def test_the_service_names_every_replica() -> None:
    found = render('metrics.service.annotations={"prometheus.io/scrape":"true"}')["Service"]
    assert found["metadata"]["annotations"] == {"prometheus.io/scrape": "true"}
    assert found["spec"]["clusterIP"] == "None"
    named = {each["name"] for each in container(render())["ports"]}
    for port in found["spec"]["ports"]:
        assert port["targetPort"] in named
    assert "Service" not in render("metrics.service.enabled=false", "webhook.enabled=false")


def served(*values: str) -> set[int]:
    """The ports that the operator's container serves."""
    return {port["containerPort"] for port in container(render(*values))["ports"]}


def test_the_network_policy_lets_in_all_that_is_served_from_anywhere() -> None:
    for values in ((), ("webhook.enabled=false",), ("webhook.port=10250",)):
        policy = render(*values)["NetworkPolicy"]["spec"]
        labels = render(*values)["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["policyTypes"] == ["Ingress"]
        (rule,) = policy["ingress"]
        assert "from" not in rule
        assert {each["port"] for each in rule["ports"]} == served(*values)
    assert "NetworkPolicy" not in render("networkPolicy.enabled=false")


def test_the_network_policy_may_limit_what_the_operator_reaches() -> None:
    policy = render("networkPolicy.egress=true")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, server, trainers = policy["egress"]
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert [each["port"] for each in server["ports"]] == [443, 6443]
    assert [each["port"] for each in trainers["ports"]] == [PROGRESS_PORT]
    assert not any("to" in rule for rule in policy["egress"])
    narrow = render(
        'networkPolicy={"egress":true,"apiServerCidrs":["172.16.0.2/32"],"apiServerPorts":[8443]}'
    )
    server = narrow["NetworkPolicy"]["spec"]["egress"][1]
    assert server == {"ports": [{"port": 8443}], "to": [{"ipBlock": {"cidr": "172.16.0.2/32"}}]}


@pytest.mark.parametrize(
    "value",
    [
        "replicas=0",
        'image.tga="1"',
        'image.digest="sha256:1"',
        'watchNamespaces="a"',
        "progressIntervalSeconds=0",
        'monitoring.podMonitor.enabled="yes"',
        'podLabels={"app.kubernetes.io/name":"mine"}',
        'monitoring.labels={"app.kubernetes.io/name":"mine"}',
        'webhook.certManager.issuerRef={"kind":"ClusterIssuer"}',
        'tolerations=[{"keys":"a"}]',
        'alerts.runbookUrl="runbooks"',
        'networkPolicy.apiServerCidrs=["172.16.0.2"]',
    ],
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((), "watches all namespaces, with 2 replicas, of which one leads"),
        (('watchNamespaces=["a","b"]', "replicas=1"), "watches the namespaces a, b, with 1 replica."),
        (('watchNamespaces=["a"]',), "kubectl -n a apply -f run.yaml"),
        (("webhook.enabled=false",), "helm test trial -n bitnet"),
        (("crds.enabled=false",), "kubectl apply --server-side -f crds/bitnetrun.yaml"),
        (("crds.keep=false",), "removes the BitNetRun kind, and with it every BitNetRun"),
        (("monitoring.serviceMonitor.enabled=true",), "--set monitoring.labels.release="),
        (
            ("monitoring.managedPrometheus.operator.enabled=true",),
            "Managed Prometheus scrapes operator and runs",
        ),
        ((), "trial-bitnet-operator.bitnet.svc:9090 names every replica"),
    ],
)
def test_the_notes_say_what_comes_next(values: tuple[str, ...], said: str) -> None:
    options = Given(values).options()
    printed = helm("install", "trial", str(CHART), "--namespace", "bitnet", "--dry-run=client", *options)
    notes = printed.partition("NOTES:")[2]
    assert said in notes
    assert ("set webhook.port to 10250" in notes) == ("webhook.enabled=false" not in values)
