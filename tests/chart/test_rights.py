"""The chart's rights: what the operator may do and where, and what people may do with runs."""

import subprocess

import pytest

from chart import Given, Manifest, container, manifests, render

WEBHOOK = "trial-bitnet-operator-webhook"
SUBJECT = {"kind": "ServiceAccount", "name": "trial-bitnet-operator", "namespace": "bitnet"}


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


def test_watched_namespaces_get_the_rights_and_the_cluster_does_not() -> None:
    found = render('watchNamespaces=["a","b"]')
    everywhere = render()["ClusterRole"]["rules"]
    assert found["Role a"]["rules"] == found["Role b"]["rules"] == everywhere[2:]
    for rule in found["ClusterRole"]["rules"]:
        assert set(rule["verbs"]) <= {"list", "watch"} or rule["resourceNames"] == [WEBHOOK]
    for namespace in ("a", "b"):
        assert found[f"RoleBinding {namespace}"]["subjects"] == [SUBJECT]


def test_replicas_share_a_lease_and_nothing_else_in_their_namespace() -> None:
    found = render()
    args = container(found)["args"]
    assert "--own-namespace=bitnet" in args
    assert "--lease-name=trial-bitnet-operator" in args
    assert found["Role leader-election"]["rules"] == [
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": ["trial-bitnet-operator"],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    ]
    binding = found["RoleBinding leader-election"]
    assert binding["roleRef"]["name"] == found["Role leader-election"]["metadata"]["name"]
    assert binding["subjects"] == [SUBJECT]


def aggregated(role: Manifest) -> set[str]:
    """Kubernetes' own roles that it is added to."""
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    labels: dict[str, str] = role["metadata"]["labels"]
    return {
        name.removeprefix(prefix) for name in labels if name.startswith(prefix) and labels[name] == "true"
    }


def test_who_may_view_or_edit_a_namespace_may_do_so_with_its_runs() -> None:
    found = render()
    view, edit = found["ClusterRole view"], found["ClusterRole edit"]
    assert aggregated(view) == {"view", "edit", "admin"}
    assert aggregated(edit) == {"edit", "admin"}
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    (editing,) = edit["rules"]
    assert editing["resources"] == ["bitnetruns"]
    assert set(editing["verbs"]) == {"create", "update", "patch", "delete", "deletecollection"}
    without = render("aggregatedRoles=false")
    assert not {"ClusterRole view", "ClusterRole edit"} & set(without)


def test_the_operators_role_is_added_to_none() -> None:
    assert aggregated(render()["ClusterRole"]) == set()


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


def test_what_asks_with_helm_test_may_make_runs_where_they_are_watched_and_no_more() -> None:
    for values, namespace in (((), "bitnet"), (('watchNamespaces=["a","b"]',), "a")):
        everything = manifests(Given(values))
        hooks = [each for each in everything if "helm.sh/hook" in each["metadata"].get("annotations", {})]
        by_kind = {each["kind"]: each for each in hooks}
        assert len(by_kind) == len(hooks) == 4
        assert by_kind["Role"]["rules"] == [
            {"apiGroups": ["bitnet.training"], "resources": ["bitnetruns"], "verbs": ["create"]}
        ]
        assert by_kind["Role"]["metadata"]["namespace"] == namespace
        assert by_kind["RoleBinding"]["metadata"]["namespace"] == namespace
        (subject,) = by_kind["RoleBinding"]["subjects"]
        assert subject["name"] == by_kind["Pod"]["spec"]["serviceAccountName"]
        assert subject["name"] == by_kind["ServiceAccount"]["metadata"]["name"]
        assert subject["namespace"] == by_kind["Pod"]["metadata"]["namespace"] == "bitnet"
        (asking,) = by_kind["Pod"]["spec"]["containers"]
        asked = {each["name"]: each["value"] for each in asking["env"]}["NAMESPACE"]
        assert asked == namespace
