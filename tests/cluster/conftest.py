"""Fixtures of the tests that need a real Kubernetes: the cluster, kubectl, a namespace for each test."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from local_cluster import Kubectl, LocalCluster, Network
from local_cluster.settings import cache_folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Kubeconfig of a cluster with the training operator, started for this session and stopped after it.

    BITNET_TEST_KUBECONFIG names the kubeconfig of one that runs already (or is 1 for $KUBECONFIG's): then
    nothing is started or stopped.
    """
    given = os.environ.get("BITNET_TEST_KUBECONFIG")
    if given:
        yield Path(os.environ["KUBECONFIG"] if given == "1" else given)
        return
    local = LocalCluster(cache_folder() / "test-work")
    yield local.start()
    local.stop()


@pytest.fixture(scope="session")
def kubectl(cluster: Path) -> Kubectl:
    """`kubectl("get", "pods")` returns stdout, or raises CommandFailed with stderr in it."""
    return Kubectl(cluster)


@pytest.fixture(scope="session")
def definition(kubectl: Kubectl, checkout: Path) -> None:
    """The CustomResourceDefinition of this checkout, on the server."""
    kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename", str(checkout / "crds/bitnetrun.yaml")
    )
    kubectl("wait", "--for=condition=Established", "crd/bitnetruns.bitnet.training", "--timeout=60s")


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace; its deletion goes on after the test."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def node_address() -> str:
    """This host as pods of the local cluster reach it."""
    return Network().node_address


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parents[2]
