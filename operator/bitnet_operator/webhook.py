"""webhook: serves admission through kopf, and keeps the certificate by which the API server knows it.

Every replica serves; none has to lead. The certificate is cert-manager's, in files that kopf reads anew when
they change, or the operator's own: replicas share it in a Secret, and its authority is written into the
ValidatingWebhookConfiguration. Helm makes both objects, so the operator has no right to make any.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kopf

from bitnet_crds.spec import API_GROUP
from bitnet_operator.admission import review
from bitnet_operator.api import Api, ApiError, Resource
from bitnet_operator.certificates import KeyPair, make_key_pair

log = logging.getLogger(__name__)

SECRETS = Resource("", "v1", "secrets")
CONFIGURATIONS = Resource("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations")
PATH = "validate"
"""Of the URL that the API server calls; kopf takes it for the handler's id."""
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
"""Keys of the Secret; the first two are what cert-manager calls its files too."""
PASS_SECONDS = 60.0
"""Between two looks at the Secret and the configuration, which an upgrade may have written anew."""


def register(registry: kopf.OperatorRegistry) -> None:
    """Has kopf ask `review` about every run that is created or changed."""

    async def admit(body: kopf.Body, warnings: list[str], **others: Any) -> None:
        old: kopf.Body | None = others["old"]
        answer = review(dict(body), None if old is None else dict(old))
        warnings.extend(answer.warnings)
        if answer.refusal is not None:
            raise kopf.AdmissionError(answer.refusal, code=HTTPStatus.UNPROCESSABLE_ENTITY)

    kopf.on.validate(API_GROUP, "bitnetruns", id=PATH, operations=["CREATE", "UPDATE"], registry=registry)(
        admit
    )


@dataclass(frozen=True)
class WebhookOptions:
    """Under which name admission is served, and where."""

    namespace: str
    name: str
    """Of the Service, the ValidatingWebhookConfiguration and the Secret."""
    port: int
    certificates: Path | None
    """Folder of cert-manager's tls.crt and tls.key; the operator makes its own where there is none."""


@asynccontextmanager
async def serving(
    options: WebhookOptions, api: Api, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings
) -> AsyncIterator[None]:
    """Has the kopf that runs inside the block serve admission on all addresses.

    Raises ApiError where Secret or configuration cannot be read or written.
    """
    register(registry)
    if options.certificates is not None:
        settings.admission.server = _server(
            options.port, options.certificates / CERTIFICATE, options.certificates / KEY
        )
        yield
        return
    with TemporaryDirectory() as folder:
        own = OwnCertificate(api, options.namespace, options.name, Path(folder) / "pair.pem")
        await own.refresh()
        settings.admission.server = _server(options.port, own.file, own.file)
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(own.keep())
            yield
            keeping.cancel()


def _server(port: int, certificate: Path, key: Path) -> kopf.WebhookServer:
    # kopf would hand the certificate on as its own authority, to a configuration that is not kopf's here.
    return kopf.WebhookServer(port=port, certfile=certificate, pkeyfile=key, cadata=b"")


@dataclass(frozen=True)
class OwnCertificate:
    """The operator's own certificate for the Service `name`; Secret and configuration have the same name."""

    api: Api
    namespace: str
    name: str
    file: Path
    """Where kopf reads it: certificate and key in one, so that they always agree."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def keep(self) -> None:
        """Looks after it for as long as the operator runs."""
        while True:
            await asyncio.sleep(PASS_SECONDS)
            try:
                await self.refresh()
            except ApiError as error:
                log.warning("the webhook's certificate was not looked after: %s", error)

    async def refresh(self) -> None:
        """Afterwards a good certificate is in the Secret and in the file, and the API server trusts it."""
        pair, authority = await self._shared()
        self._write(pair.certificate + pair.key)
        await self._trust(authority)

    async def _shared(self) -> tuple[KeyPair, bytes]:
        """The replicas' pair and whom to trust for it, made anew where there is none that serves."""
        secret = await self.api.get(SECRETS.path(self.namespace, self.name))
        before, now = KeyPair(_data(secret, CERTIFICATE), _data(secret, KEY)), self.clock()
        if before.serves([self._host], now):
            return before, _data(secret, AUTHORITY)
        pair = make_key_pair([self._host], now)
        # The one before stays trusted: another replica serves it until its next look.
        authority = pair.certificate + before.certificate
        content = {CERTIFICATE: pair.certificate, KEY: pair.key, AUTHORITY: authority}
        data = {name: base64.b64encode(each).decode() for name, each in content.items()}
        metadata = {"resourceVersion": secret["metadata"]["resourceVersion"]}
        try:
            await self.api.merge_patch(
                SECRETS.path(self.namespace, self.name), {"metadata": metadata, "data": data}
            )
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            log.info("another replica made the webhook's certificate")
            return await self._shared()
        log.info("made a certificate for %s", self._host)
        return pair, authority

    @property
    def _host(self) -> str:
        return f"{self.name}.{self.namespace}.svc"

    def _write(self, content: bytes) -> None:
        if self.file.exists() and self.file.read_bytes() == content:
            return
        fresh = self.file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(content)
        fresh.replace(self.file)

    async def _trust(self, authority: bytes) -> None:
        path = CONFIGURATIONS.path(None, self.name)
        configuration = await self.api.get(path)
        bundle = base64.b64encode(authority).decode()
        hooks = configuration["webhooks"]
        if all(hook["clientConfig"].get("caBundle") == bundle for hook in hooks):
            return
        trusting = [{**hook, "clientConfig": {**hook["clientConfig"], "caBundle": bundle}} for hook in hooks]
        metadata = {"resourceVersion": configuration["metadata"]["resourceVersion"]}
        try:
            await self.api.merge_patch(path, {"metadata": metadata, "webhooks": trusting})
        except ApiError as error:
            # Another replica writes the same, most likely; the next look sees.
            if error.status != HTTPStatus.CONFLICT:
                raise


def _data(secret: Mapping[str, Any], key: str) -> bytes:
    return base64.b64decode((secret.get("data") or {}).get(key, ""))
