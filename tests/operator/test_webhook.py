"""The webhook: what kopf is asked to do, and a certificate that replicas share and the API server trusts."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kopf
import pytest

from bitnet_operator.api import Api, ApiError
from bitnet_operator.certificates import VALID, KeyPair
from bitnet_operator.webhook import OwnCertificate, WebhookOptions, register, serving
from small_api import SmallApi
from written_runs import changed

SECRET = "/api/v1/namespaces/team/secrets/hook"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/hook"
NOW = datetime.now(UTC)
HOST = "hook.team.svc"


@pytest.fixture
def server() -> SmallApi:
    """A server with what Helm makes."""
    server = SmallApi()
    server.put(SECRET, {})
    client = {"service": {"name": "hook", "namespace": "team", "path": "/validate"}}
    server.put(CONFIGURATION, {"webhooks": [{"name": "runs", "timeoutSeconds": 5, "clientConfig": client}]})
    return server


@pytest.fixture
async def api(server: SmallApi) -> AsyncIterator[Api]:
    async with server.served() as api:
        yield api


class Replica(OwnCertificate):
    """One replica's certificate, at a time of the test's."""

    def __init__(self, api: Api, folder: Path, now: datetime = NOW) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(api, "team", "hook", folder / "pair.pem", lambda: now)

    @property
    def served(self) -> bytes:
        """The certificate in its file, which its key follows."""
        certificate, _, _ = self.file.read_bytes().partition(b"-----BEGIN PRIVATE KEY")
        return certificate


def shared(server: SmallApi, name: str) -> bytes:
    return base64.b64decode(server.objects[SECRET]["data"][name])


def trusted(server: SmallApi) -> bytes:
    (hook,) = server.objects[CONFIGURATION]["webhooks"]
    assert (hook["name"], hook["timeoutSeconds"], hook["clientConfig"]["service"]["name"]) == (
        "runs",
        5,
        "hook",
    )
    return base64.b64decode(hook["clientConfig"]["caBundle"])


async def test_replicas_share_one_certificate_that_the_api_server_trusts(
    api: Api, server: SmallApi, tmp_path: Path
) -> None:
    one, two = Replica(api, tmp_path / "one"), Replica(api, tmp_path / "two")
    await one.refresh()
    await two.refresh()
    assert one.served == two.served == trusted(server) == shared(server, "tls.crt")
    assert one.file.read_bytes() == shared(server, "tls.crt") + shared(server, "tls.key")
    assert one.file.stat().st_mode & 0o077 == 0
    assert KeyPair(one.served, b"").serves([HOST], NOW)
    server.written.clear()
    await one.refresh()
    assert server.written == []


async def test_the_one_whose_write_comes_second_takes_the_firsts(
    api: Api, server: SmallApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Replica(api, tmp_path / "one"), Replica(api, tmp_path / "two")
    get = Api.get

    async def then_the_other(self: Api, path: str, **query: str | int) -> dict[str, Any]:
        found = await get(self, path, **query)
        if path == SECRET:
            monkeypatch.setattr(Api, "get", get)
            await two.refresh()
        return found

    monkeypatch.setattr(Api, "get", then_the_other)
    await one.refresh()
    assert one.served == two.served == trusted(server)


async def test_it_is_renewed_before_its_end_and_the_one_before_stays_trusted(
    api: Api, server: SmallApi, tmp_path: Path
) -> None:
    one = Replica(api, tmp_path / "one")
    await one.refresh()
    before = one.served
    later = Replica(api, tmp_path / "one", NOW + VALID - timedelta(days=1))
    await later.refresh()
    assert later.served != before
    assert trusted(server) == later.served + before


async def test_a_configuration_that_was_written_anew_is_mended(
    api: Api, server: SmallApi, tmp_path: Path
) -> None:
    one = Replica(api, tmp_path / "one")
    await one.refresh()
    del server.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"]
    await one.refresh()
    assert trusted(server) == one.served


async def test_without_the_objects_that_helm_makes_it_says_so(
    api: Api, server: SmallApi, tmp_path: Path
) -> None:
    del server.objects[SECRET]
    with pytest.raises(ApiError, match="there is none"):
        await Replica(api, tmp_path).refresh()


@pytest.mark.parametrize("given", [True, False])
async def test_kopf_serves_with_the_given_certificate_or_with_its_own(
    api: Api, server: SmallApi, tmp_path: Path, given: bool
) -> None:
    options = WebhookOptions("team", "hook", 9443, tmp_path if given else None)
    settings = kopf.OperatorSettings()
    async with serving(options, api, kopf.OperatorRegistry(), settings):
        served = settings.admission.server
        assert isinstance(served, kopf.WebhookServer)
        assert served.port == 9443
        assert (served.certfile == tmp_path / "tls.crt") is given
        assert (served.pkeyfile == tmp_path / "tls.key") is given
        if not given:
            assert Path(str(served.certfile)).read_bytes().startswith(trusted(server))
    assert settings.admission.managed is None  # Helm's configuration stays Helm's
    assert given or not Path(str(served.certfile)).exists()
    assert (server.written == []) is given


async def test_kopf_asks_about_runs_that_are_created_or_changed(document: dict[str, Any]) -> None:
    registry = kopf.OperatorRegistry()
    register(registry)
    (handler,) = registry._webhooks.get_all_handlers()
    assert (handler.id, handler.operations, handler.subresource) == ("validate", ["CREATE", "UPDATE"], None)

    async def ask(new: dict[str, Any], old: dict[str, Any] | None) -> list[str]:
        warnings: list[str] = []
        bodies = {"body": kopf.Body(new), "old": old and kopf.Body(old)}
        await handler.fn(**bodies, warnings=warnings, logger=logging.getLogger())  # type: ignore[call-arg]
        return warnings

    wrong = changed(document, {"spec.phases.0.until": "1%"})
    with pytest.raises(kopf.AdmissionError, match=r"spec\.phases\[0\]\.until: ") as refused:
        await ask(wrong, None)
    assert refused.value.code == 422
    assert await ask(wrong, wrong) == []
    risky = changed(document, {"spec.optimizer": {"adamLearningRate": 1e-4}})
    assert any(line.startswith("spec.optimizer.adamLearningRate: ") for line in await ask(risky, document))
