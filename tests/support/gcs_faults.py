"""A proxy in front of the storage server of `gcs_server`: it checks generations, and has faults where told.

The server itself takes no notice of ifGenerationMatch, and nothing ever goes wrong in it.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit


@dataclass
class Fault:
    """What goes wrong with requests of one kind."""

    method: str
    pattern: str
    """Found somewhere in the path and query."""
    what: int | Literal["drop", "lose the answer"]
    """A status, or how the connection ends: in the middle of the request, or after it was carried out."""
    times: int = 10**9
    """How many requests it befalls."""


class Proxy(ThreadingHTTPServer):
    """Faults are set on it while it runs; what was asked is in `seen`."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(server).netloc
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.uploads: dict[str, str] = {}
        """Object by resumable upload."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """What STORAGE_EMULATOR_HOST is to name."""
        return f"http://127.0.0.1:{self.server_port}"

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The one that befalls this request, counted."""
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.method == method and re.search(fault.pattern, path) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def gcs_faults(server: str) -> Iterator[Proxy]:
    """Runs one inside, before the server at that URL."""
    with Proxy(server) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        self._pass_on()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _pass_on(self) -> None:
        fault = self.server.fault_for(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.what == "drop":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self.rfile.read(length)
        if fault is not None and isinstance(fault.what, int):
            words = {"error": {"code": fault.what, "message": f"fault {fault.what}"}}
            self._answer(fault.what, {}, json.dumps(words).encode())
            return
        if not self._generation_matches(body):
            self._answer(412, {}, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
            return
        status, headers, answer = self._asked(self.command, self.path, body)
        upload = parse_qs(urlsplit(headers.get("location", "")).query).get("upload_id")
        if upload:
            self.server.uploads[upload[0]] = self._named_in(body)
        if fault is not None:
            self._hang_up()
            return
        self._answer(status, headers, answer)

    def _generation_matches(self, body: bytes) -> bool:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        wanted = query.get("ifGenerationMatch")
        if wanted is None:
            return True
        bucket = url.path.split("/b/")[1].split("/")[0]
        if "upload_id" in query:
            name = self.server.uploads[query["upload_id"][0]]
        elif "uploadType" in query:
            name = self._named_in(body)
        else:
            name = url.path.split("/o/")[1]
        status, _, answer = self._asked("GET", f"/storage/v1/b/{bucket}/o/{name}", b"")
        return wanted[0] == (json.loads(answer)["generation"] if status == 200 else "0")

    def _named_in(self, body: bytes) -> str:
        name = re.search(rb'"name":\s*"([^"]+)"', body)
        assert name
        return quote(name[1].decode(), safe="")

    def _asked(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(self.server.behind, timeout=20)
        # With this proxy's own name as the host, which the server puts into the addresses that it gives.
        connection.request(method, path, body, dict(self.headers.items()) | {"Connection": "close"})
        with connection.getresponse() as response:
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name not in {"connection", "transfer-encoding", "content-length", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        """Says nothing."""
