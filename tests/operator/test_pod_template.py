"""How a person's pod template is merged over the operator's."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitnet_crds import parse_run
from bitnet_operator.decision import ChildRefusedError
from bitnet_operator.desired import pod_template
from bitnet_operator.pod_template import merge
from small_run import first_order

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                "name": "pytorch",
                "image": "trainer",
                "args": ["--order", "x"],
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "env": [{"name": "A", "value": "1"}],
                "volumeMounts": [{"name": "order", "mountPath": "/etc/bitnet"}],
            }
        ],
        "volumes": [
            {"name": "order", "configMap": {"name": "o"}},
            {"name": "cache", "emptyDir": {"medium": "Memory"}},
        ],
        "tolerations": [{"key": "gpu"}],
        "automountServiceAccountToken": False,
    },
}


def over(**spec: Any) -> dict[str, Any]:
    return merge(BASE, {"spec": spec})["spec"]


def test_maps_are_merged_and_the_base_stays_as_it_was() -> None:
    before = copy.deepcopy(BASE)
    merged = merge(BASE, {"metadata": {"labels": {"b": "2"}}, "spec": {"nodeSelector": {"pool": "l4"}}})
    assert merged["metadata"]["labels"] == {"a": "1", "b": "2"}
    assert merged["spec"]["nodeSelector"] == {"pool": "l4"}
    assert before == BASE


def test_a_container_of_the_same_name_is_merged_and_others_are_added() -> None:
    containers = over(
        containers=[{"name": "pytorch", "image": "mine"}, {"name": "sidecar", "image": "proxy"}]
    )["containers"]
    assert [container["name"] for container in containers] == ["pytorch", "sidecar"]
    assert (containers[0]["image"], containers[0]["args"]) == ("mine", ["--order", "x"])


def test_env_volumes_and_mounts_are_merged_by_their_own_keys() -> None:
    container = {
        "name": "pytorch",
        "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    merged = over(containers=[container], volumes=[{"name": "data", "emptyDir": {}}])
    assert merged["containers"][0]["env"] == [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]
    assert [mount["mountPath"] for mount in merged["containers"][0]["volumeMounts"]] == [
        "/etc/bitnet",
        "/data",
    ]
    assert [volume["name"] for volume in merged["volumes"]] == ["order", "cache", "data"]


def test_tolerations_add_up_and_other_lists_are_replaced() -> None:
    merged = over(
        tolerations=[{"key": "spot"}, {"key": "gpu"}], containers=[{"name": "pytorch", "args": ["other"]}]
    )
    assert merged["tolerations"] == [{"key": "gpu"}, {"key": "spot"}]
    assert merged["containers"][0]["args"] == ["other"]


def test_a_null_removes_a_key() -> None:
    assert "terminationGracePeriodSeconds" not in over(terminationGracePeriodSeconds=None)


@pytest.mark.parametrize(("key", "item"), [("containers", "x"), ("volumes", None)])
def test_an_item_that_is_no_block_is_refused_by_name(key: str, item: object) -> None:
    with pytest.raises(ChildRefusedError, match=f"an item of `{key}` is {item!r}"):
        over(**{key: [item]})


def trainer(**changes: Any) -> dict[str, Any]:
    """The training container, merged with these changes."""
    (container,) = over(containers=[{"name": "pytorch", **changes}])["containers"]
    return dict(container)


SECRET = {"valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
SPREAD = {"topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}

RULES: dict[str, tuple[dict[str, Any], str, Any]] = {
    # what is written over, the key looked at, what it is then
    "a node selector": ({"nodeSelector": {"pool": "h100"}}, "nodeSelector", {"pool": "h100"}),
    "a priority": ({"priorityClassName": "high"}, "priorityClassName", "high"),
    "a service account, whose token is not for the pods": (
        {"serviceAccountName": "trainer"},
        "automountServiceAccountToken",
        False,
    ),
    "a token that is asked for": (
        {"serviceAccountName": "trainer", "automountServiceAccountToken": True},
        "automountServiceAccountToken",
        True,
    ),
    "a security context": (
        {"securityContext": {"fsGroup": 1, "runAsUser": None}},
        "securityContext",
        {"fsGroup": 1},
    ),
    "init containers": (
        {"initContainers": [{"name": "fetch", "image": "a"}, {"name": "fetch", "args": ["b"]}]},
        "initContainers",
        [{"name": "fetch", "image": "a", "args": ["b"]}],
    ),
    "secrets for images": (
        {"imagePullSecrets": [{"name": "a"}, {"name": "b"}, {"name": "a"}]},
        "imagePullSecrets",
        [{"name": "a"}, {"name": "b"}],
    ),
    "a spread by zone, and one that is only wished": (
        {"topologySpreadConstraints": [{**SPREAD, "maxSkew": 1}, {"topologyKey": "zone"}]},
        "topologySpreadConstraints",
        [{**SPREAD, "maxSkew": 1}, {"topologyKey": "zone"}],
    ),
    "a volume of another kind, whole": (
        {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}]},
        "volumes",
        [BASE["spec"]["volumes"][0], {"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}],
    ),
    "a volume of the same kind, key by key": (
        {"volumes": [{"name": "cache", "emptyDir": {"sizeLimit": "8Gi"}}]},
        "volumes",
        [
            BASE["spec"]["volumes"][0],
            {"name": "cache", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
        ],
    ),
    "a volume less": (
        {"volumes": [{"name": "cache", "$patch": "delete"}]},
        "volumes",
        BASE["spec"]["volumes"][:1],
    ),
    "one volume in place of all": (
        {"volumes": [{"$patch": "replace"}, {"name": "x", "emptyDir": {}}]},
        "volumes",
        [{"name": "x", "emptyDir": {}}],
    ),
    "affinity, whose lists are whole": (
        {"affinity": {"podAntiAffinity": {"preferred": [{"weight": 1}]}}},
        "affinity",
        {"podAntiAffinity": {"preferred": [{"weight": 1}]}},
    ),
}


@pytest.mark.parametrize(("written", "key", "found"), RULES.values(), ids=RULES)
def test_what_a_pods_parts_become(written: dict[str, Any], key: str, found: Any) -> None:
    assert over(**written)[key] == found


OF_A_CONTAINER: dict[str, tuple[dict[str, Any], str, Any]] = {
    "a reference in place of a value": ({"env": [{"name": "A", **SECRET}]}, "env", [{"name": "A", **SECRET}]),
    "limits, resource by resource": (
        {"resources": {"limits": {"memory": "8Gi"}, "requests": {"cpu": 4}}},
        "resources",
        {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}, "requests": {"cpu": 4}},
    ),
    "limits in place of the others": (
        {"resources": {"limits": {"$patch": "replace", "example.com/gpu": 1}}},
        "resources",
        {"limits": {"example.com/gpu": 1}},
    ),
    "limits removed": ({"resources": {"limits": {"$patch": "delete"}}}, "resources", {}),
    "another mount at the same place": (
        {"volumeMounts": [{"name": "mine", "mountPath": "/etc/bitnet"}]},
        "volumeMounts",
        [{"name": "mine", "mountPath": "/etc/bitnet"}],
    ),
    "envFrom, whole": (
        {"envFrom": [{"secretRef": {"name": "s"}}]},
        "envFrom",
        [{"secretRef": {"name": "s"}}],
    ),
}


@pytest.mark.parametrize(("written", "key", "found"), OF_A_CONTAINER.values(), ids=OF_A_CONTAINER)
def test_what_a_containers_parts_become(written: dict[str, Any], key: str, found: Any) -> None:
    assert trainer(**written)[key] == found


@pytest.mark.parametrize(
    "last", [{"value": "2"}, {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
)
def test_a_reference_gives_way_to_a_value_and_to_another_reference(last: dict[str, Any]) -> None:
    def with_env(**item: Any) -> dict[str, Any]:
        return {"spec": {"containers": [{"name": "pytorch", "env": [{"name": "A", **item}]}]}}

    merged = merge(merge(BASE, with_env(**SECRET)), with_env(**last))
    assert merged["spec"]["containers"][0]["env"] == [{"name": "A", **last}]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"env": [{"value": "1"}]}, "an item of `env` has no `name`"),
        ({"env": [{"name": "A", "$patch": "remove"}]}, r"\$patch is 'remove'. Write `\$patch: delete`"),
        ({"$setElementOrder/env": [{"name": "A"}]}, r"the directive \$setElementOrder/env is not known here"),
        ({"resources": {"$retainKeys": ["limits"]}}, r"the directive \$retainKeys is not known here"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_mend(written: dict[str, Any], words: str) -> None:
    with pytest.raises(ChildRefusedError, match=words):
        trainer(**written)


def test_the_documented_template_is_one(document: dict[str, Any]) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/pods.md").read_text()
    written = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    document["spec"]["workers"] = written["workers"]
    document["spec"]["budget"] |= {"tokens": "1M", "globalBatchSize": 1024}
    spec = pod_template(parse_run(document), first_order(parse_run(document)), "trainer:1")["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["cache"] == {"name": "cache", "persistentVolumeClaim": {"claimName": "model-cache"}}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    (trainer,) = spec["containers"]
    assert trainer["resources"]["limits"] == {"nvidia.com/gpu": 8, "memory": "900Gi"}
    assert spec["automountServiceAccountToken"] is False
