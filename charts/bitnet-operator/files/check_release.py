"""What `helm test` asks a release, with Python alone: its replicas, and the API server about two runs.

Every replica answers /healthz and /metrics, and one of them leads. A right run is taken, one that only the
operator finds wrong is refused, both as a dry run: nothing is stored.
"""

import copy
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_SECONDS = 90.0
"""A lease passes on within 17 s, and a certificate is trusted soon after it was made."""
RUN: dict[str, Any] = {
    "apiVersion": "bitnet.training/v1alpha1",
    "kind": "BitNetRun",
    "metadata": {"name": "helm-test"},
    "spec": {
        "model": {"from": "hf://HuggingFaceTB/SmolLM2-135M"},
        "quantization": {"lambdaWarmup": {"steps": 200, "curve": "Linear"}},
        "data": {"sequenceLength": 128, "sources": [{"name": "text", "uri": "pvc://text"}]},
        "budget": {"tokens": 1_280_000, "globalBatchSize": 10},
        "optimizer": {"adamLearningRate": 0.001},
        "schedule": {"warmupSteps": 200},
        "phases": [
            {"name": "first", "until": "50%", "objectives": {"crossEntropy": {"weight": 1}}},
            {"name": "last", "until": "100%", "objectives": {"crossEntropy": {"weight": 1}}},
        ],
        "workers": {"count": 1, "gpusPerWorker": 1, "microBatchSize": 10},
        "checkpoint": {"uri": "pvc://runs", "everySteps": 100},
        "suspend": True,
    },
}


class NotYetError(Exception):
    """The release is not as it should be; it may become so."""


def fetch(url: str) -> str:
    """What an address answers. Raises NotYetError where it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise NotYetError(f"{url}: {error}") from None


def replicas(host: str, health_port: int = 8080, metrics_port: int = 9090) -> str:
    """What the replicas behind a name say. Raises NotYetError where one does not answer, or not one leads."""
    try:
        found = sorted({str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        raise NotYetError(f"{host}: {error}; no replica is ready") from None
    roles = []
    for address in (f"[{each}]" if ":" in each else each for each in found):
        roles.append(fetch(f"http://{address}:{health_port}/healthz").partition(";")[0])
        if "bitnet_operator_leader " not in fetch(f"http://{address}:{metrics_port}/metrics"):
            raise NotYetError(f"{address}: no bitnet_operator_leader in /metrics")
    if roles.count("leader") != 1:
        raise NotYetError(f"of the replicas not one leads: {', '.join(roles)}")
    return f"{len(roles)} replicas answer: {', '.join(roles)}"


def empty_phase() -> dict[str, Any]:
    """A run that the kind's schema takes and the operator does not: its first phase gets no step."""
    run = copy.deepcopy(RUN)
    run["spec"]["phases"][0]["until"] = "0.0001%"
    return run


def ask(server: str, namespace: str, run: dict[str, Any], account: Path = ACCOUNT) -> tuple[int, str]:
    """The API server's code and words for a run that is not stored."""
    request = urllib.request.Request(
        f"{server}/apis/bitnet.training/v1alpha1/namespaces/{namespace}/bitnetruns?dryRun=All",
        data=json.dumps(run).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text()}",
            "Content-Type": "application/json",
        },
    )
    trust = ssl.create_default_context(cafile=account / "ca.crt") if server.startswith("https:") else None
    try:
        with urllib.request.urlopen(request, timeout=15, context=trust) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()).get("message", "")
    except OSError as error:
        raise NotYetError(f"{server}: {error}") from None


def admission(server: str, namespace: str, webhook: bool, account: Path = ACCOUNT) -> str:
    """What becomes of a right run, and of a wrong one. Raises NotYetError where it is not what should."""
    code, words = ask(server, namespace, RUN, account)
    if code != 201:
        raise NotYetError(f"a right run was not taken: {code} {words}")
    if not webhook:
        return "a right run is taken"
    code, words = ask(server, namespace, empty_phase(), account)
    if code == 201 or "bitnetruns.bitnet.training" not in words:
        raise NotYetError(f"the operator was not asked about a wrong run: {code} {words}")
    return f"a right run is taken, a wrong one refused: {words}"


def insist(check: Callable[[], str], patience: float = PATIENCE_SECONDS) -> str:
    """What a check says once it holds. Raises NotYetError where it does not in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return check()
        except NotYetError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def main() -> None:
    """Asks what the environment names: REPLICAS (a host name, or none), NAMESPACE, WEBHOOK."""
    host, namespace, webhook = os.environ["REPLICAS"], os.environ["NAMESPACE"], os.environ["WEBHOOK"]
    try:
        if host:
            print(insist(lambda: replicas(host)), flush=True)
        print(insist(lambda: admission("https://kubernetes.default.svc", namespace, webhook == "true")))
    except NotYetError as error:
        raise SystemExit(f"the release does not work: {error}") from None


if __name__ == "__main__":
    main()
