"""How a person's pod template is merged over the operator's."""

import copy
from typing import Any

import pytest

from bitnet_operator.decision import ChildRefusedError
from bitnet_operator.pod_template import merge

BASE: dict[str, Any] = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                "name": "pytorch",
                "image": "trainer",
                "args": ["--order", "x"],
                "env": [{"name": "A", "value": "1"}],
                "volumeMounts": [{"name": "order", "mountPath": "/etc/bitnet"}],
            }
        ],
        "volumes": [{"name": "order", "configMap": {"name": "o"}}],
        "tolerations": [{"key": "gpu"}],
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
    assert [volume["name"] for volume in merged["volumes"]] == ["order", "data"]


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
