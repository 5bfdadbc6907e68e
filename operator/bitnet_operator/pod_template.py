"""Pod templates: what every training pod has, and how a person's template is merged over it."""

from collections.abc import Mapping
from typing import Any

from bitnet_operator.decision import ChildRefusedError

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
}
"""Lists whose items are one thing where this key agrees, as Kubernetes' strategic merge patch has it. Other
lists are replaced, but for tolerations, which add up."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into `base` by the rules of a strategic merge patch, neither of them changed.

    Source: patchMergeKey in the Kubernetes API types of Pod. A null in `over` removes the key. Raises
    ChildRefusedError for a list whose items are no blocks where they have to be.
    """
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(before, value)
        elif key == "tolerations" and isinstance(before, list):
            merged[key] = before + [item for item in value if item not in before]
        elif key in _MERGE_KEYS and isinstance(before, list) and isinstance(value, list):
            merged[key] = _merge_list(key, before, value)
        else:
            merged[key] = value
    return merged


def _merge_list(key: str, base: list[Any], over: list[Any]) -> list[Any]:
    merge_key = _MERGE_KEYS[key]
    merged = {item.get(merge_key): item for item in base}
    for item in over:
        if not isinstance(item, Mapping):
            raise ChildRefusedError(
                f"spec.workers.template: an item of `{key}` is {item!r}. Write a block with `{merge_key}`."
            )
        name = item.get(merge_key)
        merged[name] = merge(merged[name], item) if name in merged else item
    return list(merged.values())
