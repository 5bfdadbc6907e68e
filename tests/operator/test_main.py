"""The operator's process: one of two leads, and makes room where it is stopped or was frozen; both admit."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from bitnet_operator import leader
from bitnet_operator.election import LEASE_SECONDS
from bitnet_operator.main import app
from kopf_api import KopfApi
from ports import free_ports
from written_runs import changed

LEASE = "/apis/coordination.k8s.io/v1/namespaces/team/leases/bitnet-operator"
ROLES = {"leader", "standby"}
SECRET = "/api/v1/namespaces/team/secrets/hook"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/hook"


class Process:
    """One `bitnet-operator`."""

    def __init__(
        self, process: asyncio.subprocess.Process, health_port: int, webhook_port: int, log: Path
    ) -> None:
        self.process = process
        self._webhook_port = webhook_port
        self._url = f"http://127.0.0.1:{health_port}/healthz"
        self._log = log

    async def role(self) -> str:
        """What it says it is; empty while it does not answer."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http,
                http.get(self._url) as answer,
            ):
                return (await answer.text()).partition(";")[0]
        except (aiohttp.ClientError, TimeoutError):
            return ""

    async def admits(self, run: dict[str, Any], trusted: bytes) -> dict[str, Any]:
        """Its answer to the API server's question about a new run."""
        asked = {
            "uid": "1",
            "operation": "CREATE",
            "resource": {"group": "bitnet.training", "version": "v1alpha1", "resource": "bitnetruns"},
            "userInfo": {},
            "object": run,
        }
        question = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}
        context = ssl.create_default_context(cadata=trusted.decode())
        url = f"https://127.0.0.1:{self._webhook_port}/validate"
        began = time.monotonic()
        async with aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.post(
                        url, json=question, ssl=context, server_hostname="hook.team.svc"
                    ) as answer:
                        response: dict[str, Any] = (await answer.json())["response"]
                        return response
                except aiohttp.ClientConnectorError:  # kopf looks at the cluster first
                    assert time.monotonic() - began < 20, self.log()
                    await asyncio.sleep(0.1)

    async def becomes(self, role: str, seconds: float) -> float:
        """Waits until it says so; how long that took."""
        began = time.monotonic()
        while await self.role() != role:
            assert time.monotonic() - began < seconds, f"no {role}\n{self.log()}"
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(20):
            return await self.process.wait()

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()


@pytest.fixture
async def server() -> AsyncIterator[KopfApi]:
    """An API server with no runs, and with what Helm makes for the webhook."""
    server = KopfApi()
    server.put(SECRET, {})
    server.put(CONFIGURATION, {"webhooks": [{"name": "runs", "clientConfig": {}}]})
    async with server.served():
        yield server


@pytest.fixture
async def pair(server: KopfApi, tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """A leader and its standby."""
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    processes = []
    for name in ("one", "two"):
        metrics, health, webhook = free_ports(3)
        with (tmp_path / name).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bitnet_operator.main",
                "--trainer-image=trainer",
                f"--metrics-port={metrics}",
                f"--health-port={health}",
                "--own-namespace=team",
                "--webhook-name=hook",
                f"--webhook-port={webhook}",
                env={**os.environ, "KUBECONFIG": str(kubeconfig), "NO_PROXY": "127.0.0.1"},
                stdout=log,
                stderr=log,
            )
        processes.append(Process(process, health, webhook, tmp_path / name))
    async with asyncio.timeout(180):
        while {await each.role() for each in processes} != ROLES:
            await asyncio.sleep(0.05)
    by_role = {await each.role(): each for each in processes}
    yield by_role["leader"], by_role["standby"]
    for each in processes:
        if each.process.returncode is None:
            each.process.send_signal(signal.SIGKILL)
            await each.process.wait()


def test_outside_a_pod_the_namespace_of_the_lease_has_to_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(leader, "_POD_NAMESPACE", tmp_path / "none")
    refused = CliRunner().invoke(app, ["--trainer-image=trainer"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "--own-namespace" in refused.output
    assert "--no-leader-election" in refused.output


async def test_leader_and_standby_answer_admission(
    pair: tuple[Process, Process], server: KopfApi, document: dict[str, Any]
) -> None:
    (hook,) = server.objects[CONFIGURATION]["webhooks"]
    trusted = base64.b64decode(hook["clientConfig"]["caBundle"])
    wrong = changed(document, {"spec.phases.0.until": "1%"})
    for replica in pair:
        right, refused = await replica.admits(document, trusted), await replica.admits(wrong, trusted)
        assert right["allowed"] is True
        assert right["warnings"][0].startswith("spec.quantization.lambdaWarmup: ")
        assert refused["allowed"] is False
        assert refused["status"]["message"].startswith("spec.phases[0].until: phase 'warmup' has no step")
        assert "Traceback" not in replica.log()


async def test_a_leader_that_is_stopped_makes_room_at_once(
    pair: tuple[Process, Process], server: KopfApi
) -> None:
    first, standby = pair
    assert await standby.role() == "standby"
    held = server.objects[LEASE]["spec"]["holderIdentity"]
    first.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert await first.ended() == 0
    assert time.monotonic() - began < 5, "kopf waits at least five seconds where tasks go on"
    await standby.becomes("leader", LEASE_SECONDS - 5)
    spec = server.objects[LEASE]["spec"]
    assert (spec["holderIdentity"] != held, spec["leaseTransitions"]) == (True, 1)
    assert "Traceback" not in first.log()


async def test_a_leader_that_was_frozen_past_its_lease_ends(
    pair: tuple[Process, Process], server: KopfApi
) -> None:
    first, standby = pair
    first.process.send_signal(signal.SIGSTOP)
    assert await standby.becomes("leader", LEASE_SECONDS + 10) > LEASE_SECONDS - 5
    held = server.objects[LEASE]["spec"]["holderIdentity"]
    first.process.send_signal(signal.SIGCONT)
    assert await first.ended() == 1
    assert server.objects[LEASE]["spec"]["holderIdentity"] == held
    assert "the lease was lost" in first.log()
    assert "Traceback" not in first.log()
    assert await standby.role() == "leader"
