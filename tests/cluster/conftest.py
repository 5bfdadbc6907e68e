"""Fixtures of the tests that need a real Kubernetes: the cluster, kubectl, a namespace for each test."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from local_cluster import Kubectl, LocalCluster, Network, node
from local_cluster.operator_image import OPERATOR_IMAGE, operator_image
from local_cluster.settings import cache_folder
from local_cluster.shell import run
from operator_under_test import OperatorProcess, install_chart, operating
from runs import TINY_MODEL, WatchedRun, pod_template, run_document, write_tiny_model
from step_watch import StepWatch


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


@pytest.fixture(scope="session")
def operator_image_name(cluster: Path, checkout: Path) -> str:
    """The operator's image of this checkout, imported into the local cluster."""
    socket = node.containerd_socket(cluster.parent)
    if not socket.exists():
        pytest.skip(f"images are imported into a local cluster alone, and there is no {socket}")
    archive = operator_image(checkout)
    run(node.containerd_client(cluster.parent, "images", "import", archive))
    return OPERATOR_IMAGE


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


@pytest.fixture(scope="module")
def operator(
    kubectl: Kubectl, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """The operator of this checkout, under the chart's rights."""
    install_chart(kubectl, checkout)
    with operating(kubectl, tmp_path_factory.mktemp("operator")) as process:
        yield process
        assert process.tracebacks() == []


@pytest.fixture(scope="session")
def data(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pods see as /data: SmolLM2-135M, two plays, and a small random model with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    fetched = checkout / ".cache/quickstart"
    (folder / "model").mkdir()
    (folder / "text").mkdir()
    for model in (fetched / "model").glob("*.gguf"):
        shutil.copy(model, folder / "model")
    for play in ("hamlet", "tempest"):
        shutil.copy(fetched / "text" / f"{play}.txt", folder / "text")
    write_tiny_model(next((folder / "model").glob("*.gguf")), folder / "tiny")
    return folder


@pytest.fixture
def start(
    kubectl: Kubectl, namespace: str, checkout: Path, data: Path, operator: OperatorProcess
) -> Callable[..., WatchedRun]:
    """Applies a run as a person does, such as `start("killed", steps=300)`."""
    assert operator

    def apply(
        name: str,
        *,
        steps: int,
        model: str = TINY_MODEL,
        backend: str = "PyTorchJob",
        faults: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        step_seconds: float = 0.0,
        every_steps: int = 10,
        labels: Mapping[str, str] | None = None,
        **changes: object,
    ) -> WatchedRun:
        # A folder of its own for each test, since two of them may name a run alike.
        kept = {"uri": f"file:///data/runs-{namespace}", "everySteps": every_steps, "keep": 2}
        changes.setdefault("checkpoint", kept)
        slowly = {"STEP_SECONDS": str(step_seconds)}
        template = pod_template(checkout, data, {**(faults or {}), **slowly, **(env or {})})
        document = run_document(name, template, steps=steps, model=model, **changes)
        document["metadata"]["labels"] = dict(labels or {})
        document["spec"]["workers"].setdefault("backend", backend)
        kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(document))
        return WatchedRun(kubectl, namespace, name, backend)

    return apply


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes what a test measured; all of it is shown when the tests have ended."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what the tests measured."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "measured"
    ]
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.line(line)


@pytest.fixture
def watched(data: Path, namespace: str, measured: Callable[[str], None]) -> Callable[[WatchedRun], Any]:
    """Watches a run's steps for a block, and notes afterwards what its interruptions cost."""

    @contextmanager
    def watch(run: WatchedRun) -> Iterator[StepWatch]:
        with StepWatch(data / f"runs-{namespace}" / namespace / run.name / "metrics.jsonl") as steps:
            yield steps
        measured(
            f"{run.name}: a step after {steps.start:.1f} s, then {steps.downtime:.1f} s without one at most, "
            f"{steps.repeated} steps done once more"
        )

    return watch
