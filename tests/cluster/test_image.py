"""The operator's image, built with the Dockerfile: small, and at work under restricted pod security."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local_cluster import Kubectl
from local_cluster.operator_image import operator_image

pytestmark = pytest.mark.cluster

LARGEST = 200_000_000
"""Bytes of the files, each in whole blocks of 4096."""
LOOKS = """
import importlib.util, json, os, shutil, sys

programs = ["cc", "gcc", "c++", "ld", "make", "git", "curl", "pip", "pip3"]
modules = ["pip", "setuptools", "ensurepip", "hatchling", "packaging", "torch", "pytest"]
bytecode = lambda module: getattr(module, "__cached__", None)
import bitnet_operator.main
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "programs": [name for name in programs if shutil.which(name)],
    "modules": [name for name in modules if importlib.util.find_spec(name)],
    "writable": [path for path in ("/", "/opt/bitnet", "/etc", "/tmp") if os.access(path, os.W_OK)],
    "uncompiled": [name for name, module in sys.modules.items()
                   if bytecode(module) and not os.path.exists(bytecode(module))],
    "compiled": sum(os.path.exists(bytecode(module) or "") for module in sys.modules.values()) > 500,
    "settings": [path for path in ("/run/secrets/pip.conf", "/etc/pip.conf") if os.path.exists(path)],
}))
"""


@pytest.fixture(scope="module")
def archive(checkout: Path) -> Path:
    return operator_image(checkout)


@pytest.fixture
def run_image(kubectl: Kubectl, namespace: str, operator_image_name: str) -> Callable[..., str]:
    """What a container of the image prints, in a namespace that takes restricted pods alone."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    def run(name: str, **container: Any) -> str:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    # As the chart has them: the kubelet takes the user from the image, and not its group.
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "operator",
                        "image": operator_image_name,
                        "imagePullPolicy": "Never",
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        **container,
                    }
                ],
            },
        }
        kubectl("apply", "--namespace", namespace, "--filename", "-", stdin=json.dumps(pod))
        ended = ("wait", f"pod/{name}", "--namespace", namespace, "--timeout=120s")
        kubectl(*ended, "--for=jsonpath={.status.phase}=Succeeded")
        return kubectl("logs", name, "--namespace", namespace)

    return run


def test_it_is_small(archive: Path, measured: Callable[[str], None]) -> None:
    with tarfile.open(archive) as image:
        (manifest,) = json.load(_file(image, "manifest.json"))
        sizes = []
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_file(image, name)) as layer:
                sizes += [entry.size for entry in layer]
    unpacked = sum(-(-size // 4096) * 4096 for size in sizes)
    measured(f"the operator's image: {unpacked / 1e6:.0f} MB unpacked, {len(sizes)} files")
    assert unpacked < LARGEST


def _file(image: tarfile.TarFile, name: str) -> Any:
    content = image.extractfile(name)
    assert content is not None
    return content


def test_it_says_what_it_does(run_image: Callable[..., str]) -> None:
    """With the image's own command."""
    assert "--trainer-image" in run_image("help", args=["--help"])


def test_it_holds_nothing_that_builds(run_image: Callable[..., str]) -> None:
    found = json.loads(run_image("looks", command=["python3", "-c", LOOKS]))
    assert found == {
        "user": [65532, 65532],
        "programs": [],
        "modules": [],
        "writable": [],
        "uncompiled": [],
        "compiled": True,
        "settings": [],
    }
