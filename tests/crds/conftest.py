"""Fixtures of the contract's tests: a run that is right as a document, and a way to change it."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from bitnet_crds import BitNetRun, parse_run

# A shared machine can pause any example for longer than hypothesis allows one.
settings.register_profile("contract", deadline=None)
settings.load_profile("contract")

Change = Callable[..., dict[str, Any]]
"""`changed("spec.budget.tokens", 5)` is the right document with one value changed."""


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def full_run(checkout: Path) -> dict[str, Any]:
    """examples/full-run.yaml, parsed. Not to be changed: `changed` copies it."""
    document: dict[str, Any] = yaml.safe_load((checkout / "examples/full-run.yaml").read_text())
    return document


@pytest.fixture
def changed(full_run: dict[str, Any]) -> Change:
    """`changed(path, value)`: the full run with one value changed, or removed where value is `...`."""

    def change(path: str, value: Any = ...) -> dict[str, Any]:
        document = deepcopy(full_run)
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        block: Any = document
        for part in parents:
            block = block[part]
        if value is ...:
            del block[last]
        else:
            block[last] = value
        return document

    return change


@pytest.fixture
def run(full_run: dict[str, Any]) -> BitNetRun:
    """The full run as a record."""
    return parse_run(full_run)
