"""Admission on a real cluster: what kubectl says of wrong and risky runs, with the webhook and without."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from admitting import suspended_document, wait_until_asked, with_an_empty_phase
from local_cluster import CommandFailed, Kubectl
from local_cluster.training_operator import service_to_host
from operator_under_test import NAMESPACE, RELEASE, OperatorProcess, install_chart
from ports import free_ports
from runs import Document, WatchedRun

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("admitting")]

WEBHOOK = f"{RELEASE}-webhook"
SECRET_WRITTEN_OUT = {
    "spec": {"containers": [{"name": "pytorch", "env": [{"name": "HF_TOKEN", "value": "hf_abcdef"}]}]}
}


@pytest.fixture(scope="module")
def admitting(
    kubectl: Kubectl, checkout: Path, node_address: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[OperatorProcess]]:
    """Two replicas that serve admission. The chart's Service leads to the second, which stands by."""
    install_chart(kubectl, checkout)
    replicas = []
    for port in free_ports(2):
        options = (f"--webhook-name={WEBHOOK}", f"--webhook-port={port}")
        replicas.append((port, OperatorProcess(kubectl, tmp_path_factory.mktemp("operator"), *options)))
    try:
        for _, replica in replicas:
            replica.start()
        _lead_to(kubectl, node_address, replicas[1][0])
        wait_until_asked(kubectl)
        yield [replica for _, replica in replicas]
    finally:
        for _, replica in replicas:
            replica.stop()
        kubectl("delete", "endpointslice", WEBHOOK, "-n", NAMESPACE)
    for _, replica in replicas:
        assert replica.tracebacks() == []


def _lead_to(kubectl: Kubectl, address: str, port: int) -> None:
    """The chart's Service leads to this port of the host from now on, as it would to a pod."""
    _, slice_ = service_to_host(WEBHOOK, NAMESPACE, address, port)
    slice_["ports"][0]["name"] = "webhook"
    kubectl.apply(slice_)


def _refusal(kubectl: Kubectl, namespace: str, document: Document) -> str:
    """What `kubectl apply` says as it fails."""
    with pytest.raises(CommandFailed) as refused:
        kubectl("apply", "-n", namespace, "--filename", "-", stdin=json.dumps(document))
    return refused.value.stderr


@pytest.mark.parametrize(
    ("changes", "field", "mend"),
    [
        ({"phases": with_an_empty_phase()}, "spec.phases[0].until", "Give it a larger share"),
        (
            {
                "workers": {
                    "count": 2,
                    "gpusPerWorker": 0,
                    "microBatchSize": 2,
                    "template": SECRET_WRITTEN_OUT,
                }
            },
            "spec.workers.template",
            "valueFrom",
        ),
    ],
    ids=["a phase without a step", "a secret that is written out"],
)
def test_what_only_the_operator_finds_wrong_is_refused_with_the_mend(
    kubectl: Kubectl, namespace: str, changes: Document, field: str, mend: str
) -> None:
    said = _refusal(kubectl, namespace, suspended_document("wrong", **changes))
    print(f"\n{said}")
    assert 'admission webhook "bitnetruns.bitnet.training" denied the request: ' in said
    assert field in said
    assert mend in said
    assert "hf_abcdef" not in said
    assert WatchedRun(kubectl, namespace, "wrong").gone()


def test_what_is_risky_is_taken_with_a_warning(kubectl: Kubectl, namespace: str) -> None:
    risky = json.dumps(suspended_document("risky", optimizer={"adamLearningRate": 0.0001}))
    apply = ("apply", "-n", namespace, "--filename", "-")
    with pytest.raises(CommandFailed) as warned:
        kubectl(*apply, "--dry-run=server", "--warnings-as-errors", stdin=risky)
    said = warned.value.stderr
    print(f"\n{said}")
    assert "Warning: spec.optimizer.adamLearningRate: 0.0001 is a rate for fine-tuning" in said
    assert "Try 0.001 to 0.004" in said
    assert "created" in kubectl(*apply, stdin=risky)


def test_a_wrong_change_is_refused_and_a_label_is_none(kubectl: Kubectl, namespace: str) -> None:
    right = suspended_document("changing")
    kubectl("apply", "-n", namespace, "--filename", "-", stdin=json.dumps(right))
    document = suspended_document("changing", seed=right["spec"].get("seed", 0) + 1)
    assert "a run's seed cannot change once it exists: make a new run" in _refusal(
        kubectl, namespace, document
    )
    template = {**right["spec"]["workers"], "template": SECRET_WRITTEN_OUT}
    assert "denied the request: spec.workers.template" in _refusal(
        kubectl, namespace, suspended_document("changing", workers=template)
    )
    kubectl("label", "bnr", "changing", "-n", namespace, "team=a")


def test_a_standby_answers_too(admitting: list[OperatorProcess]) -> None:
    """It was the one asked in all tests above."""
    deadline = time.monotonic() + 30
    while (roles := [replica.role() for replica in admitting]) != ["leader", "standby"]:
        assert time.monotonic() < deadline, roles
        time.sleep(0.5)
    assert "Webhook 'validate'" in admitting[1].log()


def test_while_nobody_answers_a_wrong_run_is_taken_and_its_condition_says_the_same(
    kubectl: Kubectl, namespace: str, admitting: list[OperatorProcess]
) -> None:
    wrong = suspended_document("unasked", phases=with_an_empty_phase())
    refused = _refusal(kubectl, namespace, wrong).partition("denied the request: ")[2].strip()
    for replica in admitting:
        replica.stop()
    assert "created" in kubectl("apply", "-n", namespace, "--filename", "-", stdin=json.dumps(wrong))
    for replica in admitting:
        replica.start()
    status = WatchedRun(kubectl, namespace, "unasked").failed()
    (accepted,) = [each for each in status["conditions"] if each["type"] == "Accepted"]
    assert (accepted["status"], accepted["message"]) == ("False", refused)
