"""What docs/install.md promises: the chart installed by helm, its pods at work, watched by Prometheus."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from admitting import wait_until_asked
from dashboards import NAMES, Needs, queries
from local_cluster import Kubectl
from local_cluster.settings import without_proxy
from local_cluster.shell import find_program
from local_cluster.shell import run as shell
from operator_under_test import NAMESPACE, RELEASE, TRAINER_IMAGE
from prometheus import Prometheus, running
from runs import TINY_MODEL, Document, WatchedRun, pod_template, run_document
from scraping import configuration, write_pods

pytestmark = pytest.mark.cluster

WINDOW = 32
"""Steps over which the loss of the two small runs is judged."""


class Release:
    """The chart, as helm installs it here."""

    def __init__(self, kubectl: Kubectl, checkout: Path) -> None:
        self._kubectl, self._chart = kubectl, checkout / "charts/bitnet-operator"

    def install(self, image: str, *values: str) -> None:
        """Installs or upgrades it, and waits until its pods are ready."""
        repository, _, tag = image.rpartition(":")
        trainer, _, trainer_tag = TRAINER_IMAGE.rpartition(":")
        given = (
            f"image.repository={repository}",
            f"trainerImage.repository={trainer}",
            "progressIntervalSeconds=1",
            *values,
        )
        sets = [word for value in given for word in ("--set", value)]
        sets += ["--set-string", f"image.tag={tag},trainerImage.tag={trainer_tag}"]
        # --take-ownership: the definition may be an earlier test's.
        self.helm(
            "upgrade", "--install", RELEASE, self._chart, *sets, "--take-ownership", "--wait", "--timeout=3m"
        )

    def helm(self, *arguments: str | Path) -> str:
        """Runs helm in the release's namespace."""
        environment = {**without_proxy(), "KUBECONFIG": str(self._kubectl.kubeconfig)}
        return shell(
            [find_program("helm"), "--namespace", NAMESPACE, *arguments], env=environment, timeout=240
        )

    def pods(self) -> list[Document]:
        """The operator's pods."""
        selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
        return list(self._kubectl.get("pods", "-n", NAMESPACE, selector)["items"])


@pytest.fixture(scope="module")
def release(kubectl: Kubectl, checkout: Path, operator_image_name: str) -> Iterator[Release]:
    """Two operators in pods, in a namespace that enforces restricted pods."""
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kubectl.apply(namespace)
    installed = Release(kubectl, checkout)
    try:
        installed.install(operator_image_name, "replicas=2")
        yield installed
    finally:
        # A test here uninstalls it, and the other modules install theirs.
        installed.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", "--timeout=2m")


@pytest.fixture(scope="module")
def watched_by(
    kubectl: Kubectl, checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus with the chart's alerts, that scrapes as examples/prometheus.yml says."""
    folder = tmp_path_factory.mktemp("prometheus")
    pods = folder / "pods.json"
    rules = checkout / "charts/bitnet-operator/files/alerts.yaml"
    # Users have 15 s.
    often = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    scraped = configuration(pods, **often) | {"rule_files": [str(rules)]}
    ended = threading.Event()

    def discover() -> None:
        while not ended.wait(1):
            write_pods(pods, kubectl.get("pods", "--all-namespaces")["items"])

    write_pods(pods, [])
    discovery = ThreadPoolExecutor(1).submit(discover)
    with running(folder, scraped) as prometheus:
        yield prometheus
    ended.set()
    discovery.result(timeout=60)


@pytest.fixture(scope="module")
def place(kubectl: Kubectl) -> Iterator[str]:
    """A namespace for the runs of this file."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def runs(
    release: Release, watched_by: Prometheus, kubectl: Kubectl, place: str, checkout: Path, data: Path
) -> dict[str, WatchedRun]:
    """The quickstart's run, and two small ones that are alike but for what they learn: one nothing."""
    assert release
    assert watched_by
    for document in _quickstart(checkout, data):
        kubectl("apply", "-n", place, "-f", "-", stdin=json.dumps(document))
    for name, rate in (("learns", 1e-2), ("stalls", 1e-9)):
        document = run_document(
            name,
            pod_template(checkout, data, {"STEP_SECONDS": "1"}),
            steps=4000,
            model=TINY_MODEL,
            workers={"count": 1, "backend": "Job"},
            quantization={"lambdaWarmup": {"steps": 5}},
            optimizer={"adamLearningRate": rate},
            health={"plateau": {"windowTokens": WINDOW * 64, "minImprovement": "2%"}},
            checkpoint={"uri": f"file:///data/runs-{place}", "everySteps": 50, "keep": 2},
        )
        kubectl("apply", "-n", place, "-f", "-", stdin=json.dumps(document))
    return {name: WatchedRun(kubectl, place, name) for name in ("quickstart", "learns", "stalls")}


def _quickstart(checkout: Path, data: Path) -> list[Document]:
    """examples/quickstart-cluster.yaml as it stands, but for a twelfth of its steps, a third of its held-out
    text, and for what this cluster has not: a provisioner of volumes, and a registry.

    The init container finds model and text in the claim, so that it fetches nothing.
    """
    claim, quickstart = yaml.safe_load_all((checkout / "examples/quickstart-cluster.yaml").read_text())
    folder = data / "claim-quickstart"
    shutil.copytree(checkout / ".cache/quickstart", folder)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"quickstart-{uuid.uuid4().hex[:8]}"},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": claim["spec"]["accessModes"],
            "hostPath": {"path": str(folder)},
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
        },
    }
    claim["spec"] |= {"storageClassName": "", "volumeName": volume["metadata"]["name"]}
    spec = quickstart["spec"]
    spec["budget"]["tokens"] //= 12
    spec["quantization"]["lambdaWarmup"]["steps"] //= 12
    spec["checkpoint"]["everySteps"] //= 12
    spec["data"]["heldOut"] = "0.1%"
    template = pod_template(checkout, data)
    (fetch,) = spec["workers"]["template"]["spec"]["initContainers"]
    (host,) = template["spec"]["containers"]
    fetch |= {
        "image": host["image"],
        "imagePullPolicy": "Never",
        "env": host["env"],
        "workingDir": str(checkout),
    }
    fetch["volumeMounts"] = [*fetch["volumeMounts"], *host["volumeMounts"]]
    template["spec"]["initContainers"] = [fetch]
    spec["workers"]["template"] = template
    return [volume, claim, quickstart]


def test_the_operators_pods_are_restricted_and_ready(release: Release) -> None:
    pods = release.pods()
    assert len(pods) == 2
    for pod in pods:
        assert {each["type"]: each["status"] for each in pod["status"]["conditions"]}["Ready"] == "True"
        assert [each["restartCount"] for each in pod["status"]["containerStatuses"]] == [0]
    release.helm("test", RELEASE, "--timeout=2m")


def test_a_wrong_run_is_refused_by_the_operator_in_its_pod(release: Release, kubectl: Kubectl) -> None:
    assert release
    wait_until_asked(kubectl)


def test_the_plateau_alert_fires_for_the_run_that_learns_nothing_alone(
    runs: dict[str, WatchedRun], watched_by: Prometheus, place: str, measured: Callable[[str], None]
) -> None:
    runs["stalls"].wait_until(lambda status: _plateau(status) == "True", "the operator's judgement")
    since = time.monotonic()
    _until(lambda: watched_by.firing("BitNetRunLossPlateau"), "the alert", 300)
    measured(f"LossPlateau fired {time.monotonic() - since:.0f} s after the operator saw it")
    runs["learns"].wait_until(lambda status: status.get("step", 0) > 2 * WINDOW, "two windows of steps")
    (alert,) = watched_by.firing("BitNetRunLossPlateau")
    assert (alert["namespace"], alert["name"]) == (place, "stalls")
    # It was judged too: had it learned nothing, it would be here.
    (loss,) = watched_by.query(f'bitnetrun_loss{{name="learns",namespace="{place}"}}')
    assert float(loss["value"][1]) < 9
    runs["learns"].change(suspend=True)


def _plateau(status: Document) -> str | None:
    found = (each for each in status.get("conditions", []) if each["type"] == "LossPlateau")
    return next((each["status"] for each in found), None)


def _until(condition: Callable[[], Any], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(1)


@pytest.mark.parametrize("dashboard", NAMES)
def test_every_panel_shows_something(
    runs: dict[str, WatchedRun], watched_by: Prometheus, place: str, dashboard: str
) -> None:
    """But for those that need what none of these runs has, such as a GPU."""
    runs["quickstart"].wait_until(lambda status: len(status["segments"]) > 1, "the teacher", 900)
    asked = [each for each in queries(dashboard, place, "quickstart") if each.needs in (None, Needs.TRAINING)]
    assert len(asked) > 15

    def unanswered() -> list[str]:
        return [
            f"{each.panel} ({each.legend}): {each.expr}" for each in asked if not watched_by.query(each.expr)
        ]

    deadline = time.monotonic() + 300
    while missing := unanswered():
        assert time.monotonic() < deadline, "\n".join(missing)
        time.sleep(2)


def test_no_other_alert_fires(runs: dict[str, WatchedRun], watched_by: Prometheus) -> None:
    assert runs
    assert {alert["alertname"] for alert in watched_by.firing()} <= {"BitNetRunLossPlateau"}


def test_an_upgrade_goes_by_unnoticed(
    release: Release, runs: dict[str, WatchedRun], operator_image_name: str, measured: Callable[[str], None]
) -> None:
    before = {pod["metadata"]["name"] for pod in release.pods()}
    since = time.monotonic()
    release.install(operator_image_name, "replicas=2", "resources.limits.memory=600Mi")
    _until(lambda: before.isdisjoint(pod["metadata"]["name"] for pod in release.pods()), "new pods", 120)
    step = runs["stalls"].status()["step"]
    runs["stalls"].wait_until(lambda status: status["step"] > step, "a step that a new pod tells of")
    measured(f"helm upgrade: a new step in the status after {time.monotonic() - since:.0f} s")
    for each in runs.values():
        assert each.status()["attempts"] == 0


def test_the_quickstart_trains_to_its_end(runs: dict[str, WatchedRun], place: str, data: Path) -> None:
    status = runs["quickstart"].succeeded(900)
    assert [each["reason"] for each in status["segments"]] == ["Start", "TeacherPhase"]
    assert status["step"] == status["totalSteps"] == 10
    # Ten steps teach nothing; tests/cluster/test_runs.py has the figures of a run that learns.
    assert {"perplexityOriginal", "perplexityBefore", "perplexityAfter"} <= status["evaluation"].keys()
    exported = data / "claim-quickstart/runs" / place / "quickstart/export/huggingface"
    assert (exported / "model.safetensors").is_file()


def test_uninstalling_keeps_the_runs_and_their_kind(
    release: Release, runs: dict[str, WatchedRun], kubectl: Kubectl, place: str, operator_image_name: str
) -> None:
    assert runs["learns"].status()["phase"] == "Suspended"
    release.helm("uninstall", RELEASE, "--wait", "--timeout=2m")
    _until(lambda: not release.pods(), "the operators' end", 60)
    assert kubectl.get("crd", "bitnetruns.bitnet.training")
    assert {each["metadata"]["name"] for each in kubectl.get("bnr", "-n", place)["items"]} == set(runs)
    assert runs["quickstart"].status()["phase"] == "Succeeded"
    left = runs["stalls"].status()["step"]

    release.install(operator_image_name, "replicas=1")

    status = runs["stalls"].wait_until(
        lambda status: status["step"] > left, "a step of the pods that went on"
    )
    assert len(status["segments"]) <= 2
