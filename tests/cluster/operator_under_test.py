"""The operator as the tests run it: this checkout's, under the chart's own ServiceAccount and rights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from local_cluster import Kubectl, service_account_kubeconfig
from local_cluster.settings import without_proxy
from local_cluster.shell import find_program, run
from ports import free_ports

NAMESPACE = "bitnet-system"
RELEASE = "bitnet-operator"
TRAINER_IMAGE = "docker.io/local/host:1"
_STAMPED = re.compile(r"\d{4}-\d\d-\d\d ")


def install_chart(kubectl: Kubectl, checkout: Path) -> None:
    """Installs the chart with helm, less its pod: the operator under test is a process of this host."""
    run(
        [
            find_program("helm"),
            "upgrade",
            "--install",
            RELEASE,
            checkout / "charts/bitnet-operator",
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--take-ownership",
        ],
        env={**without_proxy(), "KUBECONFIG": str(kubectl.kubeconfig)},
        timeout=120,
    )
    kubectl("scale", f"deployment/{RELEASE}", "--replicas=0", "--namespace", NAMESPACE)


class OperatorProcess:
    """One `bitnet-operator` process, which can be stopped and started again."""

    def __init__(self, kubectl: Kubectl, folder: Path, *options: str) -> None:
        """`options` come after those that every operator under test has."""
        self._kubeconfig = service_account_kubeconfig(kubectl, NAMESPACE, RELEASE, folder / "kubeconfig")
        self._log = folder / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics_port, self._health_port = free_ports(2)
        self._options = options

    def start(self) -> None:
        """Starts it, and returns when it answers on /healthz."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    Path(sys.prefix) / "bin/bitnet-operator",
                    f"--trainer-image={TRAINER_IMAGE}",
                    "--progress-interval=1",
                    "--first-retry-delay=1",
                    f"--metrics-port={self._metrics_port}",
                    f"--health-port={self._health_port}",
                    f"--own-namespace={NAMESPACE}",
                    f"--lease-name={RELEASE}",
                    *self._options,
                ],
                env={**os.environ, **without_proxy(), "KUBECONFIG": str(self._kubeconfig)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 30
        while not self.role():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the operator did not come up:\n{self.log()[-4000:]}")
            time.sleep(0.2)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it; with SIGKILL as a node's failure would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None

    def send(self, what: signal.Signals) -> None:
        """Sends it a signal, and waits for nothing."""
        assert self._process is not None
        self._process.send_signal(what)

    def ended(self, seconds: float) -> int:
        """Waits until it has ended by itself; its exit code."""
        assert self._process is not None
        code = self._process.wait(timeout=seconds)
        self._process = None
        return code

    def role(self) -> str:
        """`leader` or `standby`, as it says on /healthz; empty where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/healthz", timeout=1) as answer:
                return str(answer.read().decode().partition(";")[0])
        except OSError:
            return ""

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def tracebacks(self) -> list[str]:
        """Errors that nobody foresaw, as it has logged them: each with the line before it."""
        lines = self.log().splitlines()
        found: list[str] = []
        for number, line in enumerate(lines):
            if line.startswith("Traceback "):
                rest = list(takewhile(lambda line: not _STAMPED.match(line), lines[number:]))
                found.append("\n".join([*lines[max(0, number - 1) : number], *rest]))
        return found

    def metrics(self) -> str:
        """What it answers on /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


@contextmanager
def operating(kubectl: Kubectl, folder: Path) -> Iterator[OperatorProcess]:
    """An operator at work, until the block ends."""
    operator = OperatorProcess(kubectl, folder)
    operator.start()
    try:
        yield operator
    finally:
        operator.stop()
