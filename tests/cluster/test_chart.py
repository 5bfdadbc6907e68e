"""The chart on a real API server: every render of the matrix, restricted pods, and an upgrade from 0.1.0."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import CHART, MATRIX, NAMESPACE, Given, manifests, pods
from local_cluster import CommandFailed, Kubectl
from local_cluster.build import build
from local_cluster.programs import KINDS
from local_cluster.settings import without_proxy
from local_cluster.shell import find_program, run
from runs import run_document

pytestmark = pytest.mark.cluster

BEFORE = Path(__file__).resolve().parents[1] / "chart/bitnet-operator-0.1.0.tgz"
"""The version before, as `helm package` made it."""
MANAGED_PROMETHEUS = Path(__file__).parent / "kinds/managed_prometheus.yaml"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
DEFINITION = "crd/bitnetruns.bitnet.training"
Helm = Callable[..., str]


@pytest.fixture(scope="module")
def helm(kubectl: Kubectl) -> Helm:
    """`helm("list")` returns stdout, or raises CommandFailed."""
    environment = {**without_proxy(), "KUBECONFIG": str(kubectl.kubeconfig)}
    return lambda *words: run([find_program("helm"), *words], env=environment, timeout=120)


@pytest.fixture(scope="module")
def places(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[None]:
    """The namespaces and the priority that the matrix names, those of releases restricted; and the kind."""
    request.getfixturevalue("definition")
    releases = {given.namespace for given in MATRIX.values()}
    names = (*releases, "a", "b", "grafana", "on", "1e3", "true", "2")
    for name in names:
        kubectl("create", "namespace", name)
    for name in releases:
        kubectl("label", "namespace", name, RESTRICTED)
        kubectl("wait", "--for=create", "serviceaccount/default", "--namespace", name, "--timeout=60s")
    kubectl("create", "priorityclass", "1", "--value=1")
    yield
    # Another session may need the same names on the same cluster.
    kubectl("delete", "priorityclass", "1")
    kubectl("delete", "namespace", *names, "--timeout=90s")


@pytest.fixture(scope="module")
def kinds(kubectl: Kubectl) -> Iterator[None]:
    """The kinds of the Prometheus operator, Managed Prometheus and cert-manager, as these define them."""
    folder = build(KINDS)
    files = [*sorted(folder.glob("*.yaml")), MANAGED_PROMETHEUS]
    options = [option for file in files for option in ("--filename", str(file))]
    kubectl("apply", "--server-side", "--force-conflicts", *options)
    kubectl("wait", "--for=condition=Established", *options, "--timeout=60s")
    yield
    kubectl("delete", *options, "--timeout=60s")


def dry_run(kubectl: Kubectl, objects: list[dict[str, Any]]) -> str:
    """What the API server makes of objects that it does not store; an unknown field is an error."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    options = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    return kubectl("apply", *options, "--filename", "-", stdin=content)


def with_the_default_account(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod's own account has to be there even for a dry run."""
    return {**pod, "spec": {**pod["spec"], "serviceAccountName": "default"}}


@pytest.mark.usefixtures("places", "kinds")
@pytest.mark.parametrize("given", MATRIX.values(), ids=MATRIX.keys())
def test_the_api_server_takes_every_object_and_pod_security_every_pod(kubectl: Kubectl, given: Given) -> None:
    made = manifests(given)
    others = [each for each in made if each["kind"] != "Pod"]
    tried = [*others, *map(with_the_default_account, pods(made))]
    said = dry_run(kubectl, tried).splitlines()
    assert len(said) == len(tried)
    assert all(line.endswith("serverside-applied (server dry run)") for line in said)


@pytest.mark.usefixtures("places")
def test_the_namespace_is_really_restricted(kubectl: Kubectl) -> None:
    (pod, *_) = pods(manifests(Given()))
    spec = {**pod["spec"], "serviceAccountName": "default", "hostNetwork": True}
    with pytest.raises(CommandFailed, match='violates PodSecurity "restricted'):
        dry_run(kubectl, [{**pod, "spec": spec}])


@pytest.mark.usefixtures("places")
def test_a_field_that_nobody_knows_is_refused(kubectl: Kubectl) -> None:
    (service, *_) = [each for each in manifests(Given()) if each["kind"] == "Service"]
    with pytest.raises(CommandFailed, match="clusterIPP"):
        dry_run(kubectl, [{**service, "spec": {**service["spec"], "clusterIPP": "None"}}])


@pytest.mark.usefixtures("places", "kinds")
def test_auto_is_what_the_cluster_has(helm: Helm) -> None:
    rendered = helm(
        *("install", "trial", str(CHART), "--namespace", NAMESPACE, "--dry-run=server"),
        *("--set", "crds.enabled=false", "--hide-notes", "--output", "json"),
    )
    made = yaml.load_all(json.loads(rendered)["manifest"], yaml.CSafeLoader)
    assert {"ServiceMonitor", "PodMonitor", "ClusterPodMonitoring"} <= {each["kind"] for each in made if each}


def test_runs_and_their_kind_outlive_an_upgrade_and_an_uninstall(
    helm: Helm, kubectl: Kubectl, namespace: str
) -> None:
    """No pod of the release ever starts here: what counts is what the API server and helm keep."""
    release = f"upgraded-{namespace}"
    kubectl("label", "namespace", namespace, RESTRICTED)
    where = ("--namespace", namespace)
    # The tests' own kind is there already, in kubectl's hands, and says more than that release's.
    helm("install", release, str(BEFORE), *where, "--take-ownership", "--force-conflicts")
    try:
        kubectl("wait", "--for=condition=Established", DEFINITION, "--timeout=60s")
        document = run_document("kept", {}, steps=60, model="hf://example/model")
        document["spec"]["suspend"] = True
        kubectl("create", *where, "--filename", "-", stdin=json.dumps(document))
        uid = kubectl.get("bnr", "kept", *where)["metadata"]["uid"]
        kind = kubectl.get(DEFINITION)["metadata"]["uid"]

        def kept() -> bool:
            found = kubectl.get("bnr", "kept", *where)["metadata"]["uid"]
            return bool((found, kubectl.get(DEFINITION)["metadata"]["uid"]) == (uid, kind))

        helm("upgrade", release, str(CHART), *where)
        assert kept()
        status = json.loads(helm("status", release, *where, "--output", "json"))
        assert (status["info"]["status"], status["version"]) == ("deployed", 2)
        assert kubectl.get(DEFINITION)["metadata"]["labels"]["helm.sh/chart"] == "bitnet-operator-0.2.0"
        deployment = kubectl.get("deployment", "--selector", f"app.kubernetes.io/instance={release}", *where)
        (upgraded,) = deployment["items"]
        assert upgraded["spec"]["replicas"] == 2

        helm("uninstall", release, *where)
        assert kept()
        helm("install", release, str(CHART), *where)
        assert kept()
    finally:
        helm("uninstall", release, *where, "--ignore-not-found")
