"""Secrets in a pod template: they are named there, and never written there."""

from collections.abc import Iterator, Mapping
from typing import Any

SECRET_WORDS = frozenset({"TOKEN", "KEY", "PASSWORD", "SECRET", "CREDENTIALS"})
"""A variable that has one of them as a word of its name, between underscores, holds a secret."""
_FLAGS = frozenset({"", "0", "1", "true", "false", "yes", "no"})


def written_secrets(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field, from the template on, and name of each environment variable whose secret is written out.

    A file's path, another variable's `$(NAME)` and a flag are no secrets: GOOGLE_APPLICATION_CREDENTIALS
    names a mounted file, HF_HUB_DISABLE_IMPLICIT_TOKEN is 1.
    """
    spec = template.get("spec")
    for list_name in ("containers", "initContainers"):
        for at, container in _blocks(spec, list_name):
            for index, item in _blocks(container, "env"):
                name, value = item.get("name"), item.get("value")
                if isinstance(name, str) and _is_secret(name) and _is_written(value):
                    yield f"spec.{list_name}[{at}].env[{index}].value", name


def _is_secret(name: str) -> bool:
    return not SECRET_WORDS.isdisjoint(name.upper().split("_"))


def _is_written(value: Any) -> bool:
    return isinstance(value, str) and value.lower() not in _FLAGS and not value.startswith(("/", "$("))


def _blocks(block: Any, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The blocks of a list in a block, with their places. What is neither the API server refuses."""
    items = block.get(name) if isinstance(block, Mapping) else None
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, Mapping):
            yield index, item
