"""The webhook's own certificate: a TLS client that trusts it and asks for its name is content with it."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitnet_operator.certificates import RENEWED_BEFORE, VALID, KeyPair, make_key_pair

NAME = "bitnet-operator-webhook.bitnet-system.svc"
NOW = datetime.now(UTC)


def handshake(pair: KeyPair, trusted: bytes, name: str, folder: Path) -> None:
    """A client's handshake with a server of that pair; raises SSLError where the client refuses it."""
    (folder / "pair.pem").write_bytes(pair.certificate + pair.key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "pair.pem")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = ssl.create_default_context(cadata=trusted.decode())
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_it_is_trusted_for_its_name_and_no_other(tmp_path: Path) -> None:
    pair = make_key_pair([NAME], NOW)
    handshake(pair, pair.certificate, NAME, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(pair, pair.certificate, "another.bitnet-system.svc", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pair, make_key_pair([NAME], NOW).certificate, NAME, tmp_path)


def test_two_in_a_row_are_trusted_side_by_side(tmp_path: Path) -> None:
    before, after = make_key_pair([NAME], NOW), make_key_pair([NAME], NOW)
    for pair in (before, after):
        handshake(pair, after.certificate + before.certificate, NAME, tmp_path)


def test_it_serves_its_names_until_shortly_before_its_end() -> None:
    pair = make_key_pair([NAME], NOW)
    last = NOW + VALID - RENEWED_BEFORE
    assert pair.serves([NAME], last - timedelta(minutes=1))
    assert not pair.serves([NAME], last)
    assert not pair.serves([NAME, "another.svc"], NOW)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_serves_nothing(content: bytes) -> None:
    assert not KeyPair(content, b"").serves([NAME], NOW)
