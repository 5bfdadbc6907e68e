"""The backends by the name that spec.workers.backend gives them."""

from collections.abc import Mapping
from typing import Any

from bitnet_crds.machines import BackendName, Workers
from bitnet_operator.backends import job, pytorchjob
from bitnet_operator.backends.backend import Backend

BACKENDS: dict[BackendName, Backend] = {"PyTorchJob": pytorchjob, "Job": job}


def backend_of(document: Mapping[str, Any]) -> Backend:
    """The backend of a run as the API server returns it, even of one that is wrong elsewhere."""
    name = document.get("spec", {}).get("workers", {}).get("backend")
    return BACKENDS[name if name in BACKENDS else Workers.model_fields["backend"].default]
