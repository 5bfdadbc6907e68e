"""Pod templates: how a person's is merged over what every training pod has."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from bitnet_crds import BitNetRunSpec, InvalidRun, Problem
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


class UnmergeableError(ChildRefusedError):
    """A template that cannot be merged; no API server has to be asked for that."""

    def __init__(self, place: str, what: str, fix: str) -> None:
        """`place` is a path from the template on, such as `.spec.containers[0]`."""
        self.place, self.what, self.fix = place, what, fix
        super().__init__(f"template{place}: {what}. {fix}.")

    def problem(self, field: str) -> Problem:
        """What is wrong with the template that is written as `field`."""
        return Problem(f"{field}{self.place}", self.what, self.fix)


def check_templates(spec: BitNetRunSpec) -> None:
    """Raises InvalidRun with every template of the run that cannot be merged."""
    if problems := tuple(_problems(spec)):
        raise InvalidRun(problems)


def _problems(spec: BitNetRunSpec) -> Iterator[Problem]:
    base: dict[str, Any] = {}
    try:
        base = merge(base, spec.workers.template or {})
    except UnmergeableError as error:
        yield error.problem("spec.workers.template")
    for index, phase in enumerate(spec.phases):
        own = phase.workers.template if phase.workers else None
        try:
            merge(base, own or {})
        except UnmergeableError as error:
            yield error.problem(f"spec.phases[{index}].workers.template")


def merge(base: Mapping[str, Any], over: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """`over` merged into `base` by the rules of a strategic merge patch, neither of them changed; both are at
    `place` in the template, such as `.spec`.

    A null in `over` removes the key; `$patch: replace` in a block, or as an item of a list, puts it in place
    of the other's, and `$patch: delete` removes the block or the item. Source: patchStrategy and
    patchMergeKey in the Kubernetes API types of Pod. Other than there, tolerations add up, and items of env
    are whole. Raises UnmergeableError for a list whose items are no blocks where they have to be or lack
    their key, and for any other directive.
    """
    if _directive(over, place) == "replace":
        base = {}
    merged = dict(base)
    for key, value in over.items():
        if key == _DIRECTIVE:
            continue
        before, at = merged.get(key), f"{place}.{key}"
        if value is None or (isinstance(value, Mapping) and _directive(value, at) == "delete"):
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = merge(before if isinstance(before, Mapping) else {}, value, at)
        elif isinstance(value, list) and (key in _MERGE_KEYS or key == "tolerations"):
            merged[key] = _merge_list(key, before if isinstance(before, list) else [], value, at)
        else:
            merged[key] = value
    return merged


def _merge_list(key: str, base: list[Any], over: list[Any], place: str) -> list[Any]:
    if key == "tolerations":
        return base + [item for item in over if item not in base]
    merged = {_identity(key, item, place): item for item in base}
    for index, item in enumerate(over):
        at = f"{place}[{index}]"
        if not isinstance(item, Mapping):
            keys = " and ".join(f"`{name}`" for name in _MERGE_KEYS[key])
            raise UnmergeableError(at, f"an item of `{key}` is {item!r}", f"Write a block with {keys}")
        directive = _directive(item, at)
        if directive == "replace" and len(item) == 1:
            merged = {}
            continue
        identity = _identity(key, item, at)
        if directive == "delete":
            merged.pop(identity, None)
        else:
            merged[identity] = _merge_item(key, merged.get(identity, {}), item, at)
    return list(merged.values())


def _merge_item(key: str, base: Mapping[str, Any], over: Mapping[str, Any], place: str) -> dict[str, Any]:
    if key in _WHOLE or (key in _ONE_OF and not over.keys() - {_DIRECTIVE} <= base.keys()):
        base = {}
    return merge(base, over, place)


def _identity(key: str, item: Mapping[str, Any], place: str) -> Hashable:
    missing = [name for name in _MERGE_KEYS[key] if name not in item]
    if missing and key != "topologySpreadConstraints":
        # The item itself is not repeated: a value of env may be a secret.
        what = f"an item of `{key}` has no `{missing[0]}`, by which items are told apart"
        raise UnmergeableError(place, what, "Add it")
    for name in _MERGE_KEYS[key]:
        if not isinstance(item.get(name), Hashable):
            what = f"{item[name]!r} found, and items of `{key}` are told apart by it"
            raise UnmergeableError(f"{place}.{name}", what, "Write a word or a number")
    return tuple(item.get(name) for name in _MERGE_KEYS[key])


def _directive(block: Mapping[str, Any], place: str) -> str | None:
    """What `$patch` says in a block. Raises UnmergeableError for a directive that is not followed here."""
    for key in block:
        if str(key).startswith("$") and key != _DIRECTIVE:
            raise UnmergeableError(
                place,
                f"the directive {key} is not known here",
                "Write `$patch: delete` or `$patch: replace`, or null to remove a key",
            )
    directive = block.get(_DIRECTIVE)
    if directive not in (None, "merge", "replace", "delete"):
        raise UnmergeableError(
            place, f"$patch is {directive!r}", "Write `$patch: delete`, `$patch: replace` or leave it out"
        )
    return None if directive is None else str(directive)
