"""A server on this machine that answers as the Hugging Face hub does, for datasets in a folder, for tests."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_for_tests"
"""What opens a gated or private dataset."""


@dataclass
class Hub:
    """The datasets `<root>/<organisation>/<name>/<revision>/<files>`, and what was asked of them."""

    root: Path
    url: str = ""
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    failing: int | None = None
    """A status that it gives whatever it is asked, but whether it is there."""
    requests: list[str] = field(default_factory=list)
    """`<method> <path>` of each."""
    content_bytes: int = 0
    """Of data files, sent so far."""

    def write(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Puts a dataset there, or another commit of its branch: gives the commit."""
        digest = hashlib.sha1()
        for name, content in sorted(files.items()):
            digest.update(name.encode() + content)
        commit = digest.hexdigest()
        folder = self.root / repository
        for name, content in files.items():
            path = folder / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / revision).unlink(missing_ok=True)
        (folder / revision).symlink_to(commit)
        return commit

    def size(self, repository: str, revision: str = "main") -> int:
        """Bytes of all its files."""
        folder = (self.root / repository / revision).resolve()
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def hub_server(root: Path) -> Iterator[Hub]:
    """Runs one inside; `url` is what HF_ENDPOINT is to name."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # the names that http.server calls
            self._respond()

        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self._respond(self.rfile.read(int(self.headers["Content-Length"])))

        def _respond(self, body: bytes = b"") -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            if hub.failing is not None and path != "/":
                self._send(hub.failing)
            elif api := _API.fullmatch(path):
                self._api(*api.groups(), body)
            elif resolve := _RESOLVE.fullmatch(path):
                self._file(*resolve.groups())
            else:
                self._send(200 if path == "/" else 404)

        def _api(
            self, repository: str, what: str | None, revision: str | None, below: str | None, body: bytes
        ) -> None:
            folder = self._commit(repository, revision or "main")
            if folder is None:
                return
            if what == "paths-info":
                asked = self._asked(body)
                self._send_json([entry for entry in _entries(folder) if entry["path"] in asked])
            elif what == "tree":
                if (folder / (below or "")).is_dir():
                    wanted = parse_qs(urlsplit(self.path).query).get("recursive") in (["true"], ["True"])
                    self._send_json(_entries(folder, below or "", recursive=wanted))
                else:
                    self._send(404, {"X-Error-Code": "EntryNotFound"})
            else:
                names = [{"rfilename": file["path"]} for file in _entries(folder) if file["type"] == "file"]
                self._send_json({"id": repository, "sha": folder.name, "tags": [], "siblings": names})

        def _asked(self, body: bytes) -> list[str]:
            if self.headers["Content-Type"].startswith("application/json"):
                return list(json.loads(body)["paths"])
            return parse_qs(body.decode())["paths"]

        def _file(self, repository: str, revision: str, name: str) -> None:
            folder = self._commit(repository, revision, content=True)
            if folder is None:
                return
            path = folder / name
            if not path.is_file():
                self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": folder.name})
                return
            content = path.read_bytes()
            headers = {
                "ETag": f'"{_id(path)}"',
                "X-Repo-Commit": folder.name,
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
            }
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                self._send(206, headers, content[first : last + 1])
            else:
                self._send(200, headers, content)

        def _commit(self, repository: str, revision: str, content: bool = False) -> Path | None:
            """The folder of a commit; None where the answer has been sent already."""
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            there = hub.root / repository
            if not there.is_dir() or (repository in hub.private and not known):
                self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif content and repository in hub.gated and not known:
                self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            elif not (there / revision).is_dir():
                self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "No such revision"})
            else:
                return (there / revision).resolve()
            return None

        def _send_json(self, answer: Any) -> None:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

        def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                if "/resolve/" in self.path and status < 300:
                    hub.content_bytes += len(body)
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    return Handler


@cache  # a commit never changes
def _id(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _entries(folder: Path, below: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
    found = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
    return [
        {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        if path.is_dir()
        else {"type": "file", "path": name, "oid": _id(path), "size": path.stat().st_size}
        for path in sorted(found)
        for name in [path.relative_to(folder).as_posix()]
    ]
