"""A server on this machine that speaks Google Cloud Storage, for tests."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from google.cloud import storage

from ports import free_port


@contextmanager
def gcs_server() -> Iterator[str]:
    """Runs one inside; gives what STORAGE_EMULATOR_HOST is to name."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory", "--quiet"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


def upload(bucket: str, files: Mapping[str, bytes]) -> None:
    """Puts objects, by name, into a bucket of the server that the environment names; makes the bucket."""
    with storage.Client(project="tests") as client:
        there = client.lookup_bucket(bucket) or client.create_bucket(bucket)
        for name, content in files.items():
            there.blob(name).upload_from_string(content)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        assert server.poll() is None, "the storage server ended at once"
        try:
            with urlopen(url, timeout=5):
                return
        except URLError:
            time.sleep(0.1)
    raise TimeoutError(f"no storage server at {url}")
