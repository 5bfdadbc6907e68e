"""Pod templates: how a person's is merged over what every training pod has."""

from collections.abc import Hashable, Mapping
from typing import Any

from bitnet_operator.decision import ChildRefusedError

_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "ports": ("containerPort",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""Lists whose items are one thing where these keys agree. Other lists are replaced, but for tolerations,
which add up."""
_WHOLE = {"env"}
"""Lists whose items are replaced whole: two values, or two references, are never one variable."""
_ONE_OF = {"volumes", "resourceClaims"}
"""Lists whose items are replaced whole where they are of another kind, such as a claim for an emptyDir."""
_DIRECTIVE = "$patch"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into `base` by the rules of a strategic merge patch, neither of them changed.

    A null in `over` removes the key; `$patch: replace` in a block, or as an item of a list, puts it in place
    of the other's, and `$patch: delete` removes the block or the item. Source: patchStrategy and
    patchMergeKey in the Kubernetes API types of Pod. Other than there, tolerations add up, and items of env
    are whole. Raises ChildRefusedError for a list whose items are no blocks where they have to be or lack
    their key, and for any other directive.
    """
    if _directive(over) == "replace":
        base = {}
    merged = dict(base)
    for key, value in over.items():
        if key == _DIRECTIVE:
            continue
        before = merged.get(key)
        if value is None or (isinstance(value, Mapping) and _directive(value) == "delete"):
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = merge(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, list) and (key in _MERGE_KEYS or key == "tolerations"):
            merged[key] = _merge_list(key, before if isinstance(before, list) else [], value)
        else:
            merged[key] = value
    return merged


def _merge_list(key: str, base: list[Any], over: list[Any]) -> list[Any]:
    if key == "tolerations":
        return base + [item for item in over if item not in base]
    merged = {_identity(key, item): item for item in base}
    for item in over:
        if not isinstance(item, Mapping):
            keys = " and ".join(f"`{name}`" for name in _MERGE_KEYS[key])
            raise ChildRefusedError(f"template: an item of `{key}` is {item!r}. Write a block with {keys}.")
        directive = _directive(item)
        if directive == "replace" and len(item) == 1:
            merged = {}
            continue
        identity = _identity(key, item)
        if directive == "delete":
            merged.pop(identity, None)
        else:
            merged[identity] = _merge_item(key, merged.get(identity, {}), item)
    return list(merged.values())


def _merge_item(key: str, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    if key in _WHOLE or (key in _ONE_OF and not over.keys() - {_DIRECTIVE} <= base.keys()):
        base = {}
    return merge(base, over)


def _identity(key: str, item: Mapping[str, Any]) -> Hashable:
    missing = [name for name in _MERGE_KEYS[key] if name not in item]
    if missing and key != "topologySpreadConstraints":
        raise ChildRefusedError(
            f"template: an item of `{key}` has no `{missing[0]}`, by which items are told apart: "
            f"{dict(item)!r}. Add it."
        )
    return tuple(item.get(name) for name in _MERGE_KEYS[key])


def _directive(block: Mapping[str, Any]) -> str | None:
    """What `$patch` says in a block. Raises ChildRefusedError for a directive that is not followed here."""
    for key in block:
        if key.startswith("$") and key != _DIRECTIVE:
            raise ChildRefusedError(
                f"template: the directive {key} is not known here. Write `$patch: delete` or "
                "`$patch: replace`, or null to remove a key."
            )
    directive = block.get(_DIRECTIVE)
    if directive not in (None, "merge", "replace", "delete"):
        raise ChildRefusedError(
            f"template: $patch is {directive!r}. Write `$patch: delete`, `$patch: replace` or leave it out."
        )
    return None if directive is None else str(directive)
