"""The cluster's certificate authority, the certificates it signs, and the bearer tokens of its components."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from local_cluster.settings import Settings
from local_cluster.shell import find_program, run

VALID_DAYS = "30"


@dataclass(frozen=True)
class KeyPair:
    """A private key and the certificate for it."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Credentials:
    """Files of secrets the control plane starts with, and the token of each of its users."""

    authority: KeyPair
    api_server: KeyPair
    kubelet_client: KeyPair
    service_account_key: Path
    tokens_file: Path
    tokens: dict[str, str]
    """User name to bearer token."""


def create_credentials(folder: Path, settings: Settings) -> Credentials:
    """Makes every key anew; nothing outlives the cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = _self_signed(folder, "bitnet-local-cluster")
    network = settings.network
    addresses = [f"IP:{network.api_address}", f"IP:{network.node_address}", "IP:127.0.0.1"]
    hosts = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
    names = [f"DNS:{host}" for host in hosts]
    api_server = _signed(
        folder, authority, "kube-apiserver", f"subjectAltName={','.join([*names, *addresses])}"
    )
    kubelet_client = _signed(
        folder, authority, "kubelet-client", "extendedKeyUsage=clientAuth", organisation="system:masters"
    )
    service_account_key = folder / "service-account.key"
    _new_key(service_account_key)
    tokens_file, tokens = _write_tokens(folder / "tokens.csv", settings)
    return Credentials(authority, api_server, kubelet_client, service_account_key, tokens_file, tokens)


def _write_tokens(path: Path, settings: Settings) -> tuple[Path, dict[str, str]]:
    """Each component is its own user, so that the API server's stock RBAC rules and node authoriser hold."""
    groups = {
        "admin": "system:masters",
        "system:kube-controller-manager": "",
        "system:kube-scheduler": "",
        f"system:node:{settings.node_name}": "system:nodes",
    }
    tokens = {user: secrets.token_hex(16) for user in groups}
    lines = [f'{tokens[user]},{user},{user},"{group}"' for user, group in groups.items()]
    path.write_text("\n".join(lines) + "\n")
    return path, tokens


def _new_key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


def _openssl(*arguments: str | Path) -> None:
    command: list[str | Path] = [find_program("openssl"), *arguments]
    run(command)


def _self_signed(folder: Path, common_name: str) -> KeyPair:
    pair = KeyPair(folder / "ca.crt", folder / "ca.key")
    _new_key(pair.key)
    request = ["req", "-x509", "-new", "-subj", f"/CN={common_name}", "-days", VALID_DAYS]
    _openssl(*request, "-key", pair.key, "-out", pair.certificate)
    return pair


def _signed(
    folder: Path, authority: KeyPair, common_name: str, extension: str, organisation: str = ""
) -> KeyPair:
    pair = KeyPair(folder / f"{common_name}.crt", folder / f"{common_name}.key")
    request, extensions = folder / f"{common_name}.csr", folder / f"{common_name}.ext"
    extensions.write_text(extension + "\n")
    subject = (f"/O={organisation}" if organisation else "") + f"/CN={common_name}"
    _new_key(pair.key)
    _openssl("req", "-new", "-subj", subject, "-key", pair.key, "-out", request)
    signer: list[str | Path] = ["-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"]
    content: list[str | Path] = ["-in", request, "-out", pair.certificate, "-extfile", extensions]
    _openssl("x509", "-req", "-days", VALID_DAYS, *content, *signer)
    return pair
