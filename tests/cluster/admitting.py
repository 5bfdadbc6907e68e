"""Runs that nothing trains, shown to the webhook; one of them wrong in what the operator alone finds."""

from __future__ import annotations

import json
import time
from typing import Any

from local_cluster import CommandFailed, Kubectl
from runs import TINY_MODEL, Document, run_document


def wait_until_asked(kubectl: Kubectl) -> None:
    """Until the API server asks the operator, so that a run that only the operator finds wrong is refused."""
    deadline = time.monotonic() + 60
    document = json.dumps(suspended_document("asked", phases=with_an_empty_phase()))
    while time.monotonic() < deadline:
        try:
            kubectl("create", "--dry-run=server", "--filename", "-", stdin=document)
        except CommandFailed as error:
            if "denied the request" in error.stderr:
                return
            raise
        time.sleep(0.3)
    raise AssertionError("the webhook is not asked")


def suspended_document(name: str, **changes: Any) -> Document:
    """A run that waits; `changes` replace parts of its spec."""
    document = run_document(name, {}, steps=60, model=TINY_MODEL, **changes)
    document["spec"]["suspend"] = True
    return document


def with_an_empty_phase() -> list[Document]:
    """Phases of which the first gets no step."""
    objectives = {"crossEntropy": {"weight": 1}}
    return [
        {"name": "warmup", "until": "0.1%", "objectives": objectives},
        {"name": "main", "until": "100%", "objectives": {**objectives, "teacherLogits": {"weight": 1}}},
    ]
