"""The local cluster itself: a two-pod PyTorchJob in this checkout's Python, logs, names, rights, webhooks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from local_cluster import (
    CommandFailed,
    Kubectl,
    host_pod_template,
    offer_resource,
    service_account_kubeconfig,
)

pytestmark = pytest.mark.cluster

ALL_REDUCE = """
import sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
message = f"rank {dist.get_rank()} of {dist.get_world_size()} sees {total.item():.0f}"
print(message, sys.executable, flush=True)
with open("/dev/termination-log", "w") as file:
    file.write(message)
with open(f"/data/rank-{dist.get_rank()}", "w") as file:
    file.write(message)
dist.destroy_process_group()
"""


def pod_template(checkout: Path, data: Path, *command: str, **env: str) -> dict[str, Any]:
    template = host_pod_template(checkout, Path(sys.prefix), data, env=env)
    template["spec"]["containers"][0]["command"] = list(command)
    return template


def pytorch_job(name: str, template: dict[str, Any]) -> dict[str, Any]:
    replica = {"replicas": 1, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {"Master": replica, "Worker": replica},
        },
    }


def create(kubectl: Kubectl, namespace: str, manifest: dict[str, Any]) -> None:
    manifest["metadata"]["namespace"] = namespace
    kubectl.apply(manifest)


def wait_for(kubectl: Kubectl, namespace: str, what: str, condition: str) -> None:
    kubectl("wait", what, f"--for=condition={condition}", "--timeout=100s", "--namespace", namespace)


def terminated(kubectl: Kubectl, namespace: str, pod: str) -> dict[str, Any]:
    status = kubectl.get("pod", pod, "--namespace", namespace)["status"]
    state: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
    return state


@pytest.mark.thorough  # as runs on two workers do
def test_two_pods_all_reduce(kubectl: Kubectl, namespace: str, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "all_reduce.py").write_text(ALL_REDUCE)
    torchrun = ("python", "-m", "torch.distributed.run", "/data/all_reduce.py")
    create(kubectl, namespace, pytorch_job("sum", pod_template(checkout, tmp_path, *torchrun)))

    wait_for(kubectl, namespace, "pytorchjob/sum", "Succeeded")

    for rank, pod in enumerate(("sum-master-0", "sum-worker-0")):
        message = f"rank {rank} of 2 sees 3"
        state = terminated(kubectl, namespace, pod)
        assert (state["exitCode"], state["message"]) == (0, message)
        # Not at the beginning: a rank that waits for the other one's name says so.
        assert f"{message} {sys.prefix}/bin/python" in kubectl("logs", pod, "-n", namespace)
        assert (tmp_path / f"rank-{rank}").read_text() == message


def test_exit_code_of_a_failed_pod(kubectl: Kubectl, namespace: str, checkout: Path, tmp_path: Path) -> None:
    code = "import os, sys; open('/dev/termination-log', 'w').write('out of data'); sys.exit(42)"
    create(kubectl, namespace, pytorch_job("fail", pod_template(checkout, tmp_path, "python", "-c", code)))

    wait_for(kubectl, namespace, "pytorchjob/fail", "Failed")

    state = terminated(kubectl, namespace, "fail-master-0")
    assert (state["exitCode"], state["message"]) == (42, "out of data")


def test_exec_and_names_in_a_pod(kubectl: Kubectl, namespace: str, checkout: Path, tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"}}
    create(kubectl, namespace, {**pod, **pod_template(checkout, tmp_path, "sleep", "600")})
    wait_for(kubectl, namespace, "pod/idle", "Ready")
    code = """
import socket, ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount"
print(socket.gethostbyname("kubernetes.default"))
context = ssl.create_default_context(cafile=f"{account}/ca.crt")
print(urllib.request.urlopen("https://kubernetes.default.svc/readyz", context=context).read().decode())
"""
    said = kubectl("exec", "idle", "-n", namespace, "--", "python", "-c", code)
    assert said.split() == ["10.198.0.1", "ok"]

    with pytest.raises(CommandFailed, match="Read-only file system"):
        kubectl("exec", "idle", "-n", namespace, "--", "touch", f"{checkout}/written-by-a-pod")


def test_service_account_has_its_own_rights_only(kubectl: Kubectl, namespace: str, tmp_path: Path) -> None:
    kubectl("create", "serviceaccount", "reader", "-n", namespace)
    kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", namespace)
    account = f"--serviceaccount={namespace}:reader"
    kubectl("create", "rolebinding", "reader", "--role=reader", account, "-n", namespace)

    reader = Kubectl(service_account_kubeconfig(kubectl, namespace, "reader", tmp_path / "kubeconfig"))

    assert "kube-root-ca.crt" in reader("get", "configmaps", "--output", "name")
    with pytest.raises(CommandFailed, match=f"system:serviceaccount:{namespace}:reader.*cannot list.*pods"):
        reader("get", "pods")


def test_webhook_refuses_an_invalid_job(
    kubectl: Kubectl, namespace: str, checkout: Path, tmp_path: Path
) -> None:
    template = pod_template(checkout, tmp_path, "true")
    template["spec"]["containers"][0]["name"] = "trainer"
    with pytest.raises(CommandFailed, match="at least one container with name pytorch"):
        create(kubectl, namespace, pytorch_job("wrong", template))


def test_pod_with_offered_devices_runs(
    kubectl: Kubectl, namespace: str, checkout: Path, tmp_path: Path
) -> None:
    offer_resource(kubectl, "example.com/device", 8)
    template = pod_template(checkout, tmp_path, "true")
    template["spec"]["restartPolicy"] = "Never"
    template["spec"]["containers"][0]["resources"] = {"limits": {"example.com/device": "8"}}
    create(
        kubectl, namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy"}, **template}
    )
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "pod/greedy", done, "--timeout=60s", "--namespace", namespace)
