"""Models in Google Cloud Storage: copied whole and once, from a server that speaks its protocol."""

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import pytest
from google.auth.exceptions import RefreshError, TransportError
from requests.exceptions import ConnectionError as RequestsConnectionError

from bitnet_trainer import cloud
from bitnet_trainer.cloud import CloudError, NoCredentialsError
from bitnet_trainer.errors import ModelUnavailable
from bitnet_trainer.models.gcs import local_copy
from gcs_server import gcs_server, upload


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with gcs_server() as url:
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(server, monkeypatch, request) -> str:
    """The name of a bucket of the test's own; `upload` makes it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    return "b" + request.node.name.translate(str.maketrans("_[]", "---"))[:40].strip("-").lower()


def test_a_folder_is_copied_as_it_is_without_what_lies_below_it(bucket, monkeypatch):
    monkeypatch.setattr(cloud, "CHUNK_BYTES", 2**18)
    large = bytes(range(256)) * 3000  # three chunks
    upload(
        bucket,
        {
            "models/smol/config.json": b"{}",
            "models/smol/model.safetensors": large,
            "models/smol/empty": b"",
            "models/smol/checkpoints/huge": b"not this",
            "models/smollest/config.json": b"nor this",
        },
    )
    copy = local_copy(bucket, "models/smol/")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": large,
        "empty": b"",
    }


def test_a_copy_is_not_fetched_again_and_a_replaced_model_is(bucket):
    upload(bucket, {"config.json": b"old"})
    old = local_copy(bucket, "")
    file = (old / "config.json").stat().st_ino
    assert local_copy(bucket, "") == old
    assert (old / "config.json").stat().st_ino == file
    upload(bucket, {"config.json": b"new"})
    assert (local_copy(bucket, "") / "config.json").read_bytes() == b"new"
    assert (old / "config.json").read_bytes() == b"old"  # who reads it goes on reading it


def test_a_gguf_file_is_copied_alone(bucket):
    upload(bucket, {"m/tiny.gguf": b"GGUF", "m/tiny.gguf.sha256": b"..", "m/other.gguf": b".."})
    copy = local_copy(bucket, "m/tiny.gguf")
    assert copy.read_bytes() == b"GGUF"
    assert list(copy.parent.iterdir()) == [copy]
    assert copy.name == "tiny.gguf"


def test_what_a_killed_process_left_behind_is_not_taken_for_a_copy(bucket):
    upload(bucket, {"config.json": b"{}"})
    copy = local_copy(bucket, "")
    partial = copy.rename(copy.with_suffix(".partial"))
    (partial / "config.json").write_bytes(b"ha")
    (partial / "of another time").touch()
    assert {file.name: file.read_bytes() for file in local_copy(bucket, "").iterdir()} == {
        "config.json": b"{}"
    }


def test_no_bucket(bucket):
    with pytest.raises(
        ModelUnavailable, match=rf"gs://{bucket}/m: there is no bucket {bucket}.*correct the name"
    ) as told:
        local_copy(bucket, "m")
    assert not told.value.transient


def test_nothing_under_the_prefix(bucket):
    upload(bucket, {"models/smol/config.json": b"{}", "folder/": b""})
    for path in ("models/smo", "models/tiny.gguf", "folder"):
        with pytest.raises(ModelUnavailable, match=rf"nothing at gs://{bucket}/{path} .*correct the path"):
            local_copy(bucket, path)


def test_a_folder_without_config_is_not_fetched_and_the_gguf_in_it_named(bucket, cache):
    upload(bucket, {"m/tiny.gguf": b"GGUF", "m/text.txt": b""})
    with pytest.raises(ModelUnavailable, match=rf"name the file itself: gs://{bucket}/m/tiny\.gguf"):
        local_copy(bucket, "m")
    assert not cache.exists()


def test_no_credentials(no_credentials):
    no_credentials()
    with pytest.raises(
        ModelUnavailable, match=r"gs://bucket/m: .*no credentials .*GOOGLE_APPLICATION_CREDENTIALS"
    ) as told:
        local_copy("bucket", "m")
    assert not told.value.transient


def asked_for(place: cloud.Place) -> type[CloudError]:
    """What is raised where `place` is listed."""
    with pytest.raises(CloudError) as told, cloud.said_plainly(place), cloud.connected() as client:
        list(client.list_blobs(place.bucket, timeout=1, retry=None))
    return told.type


def test_a_key_file_that_is_named_and_is_not_there_is_a_mistake_and_no_lack(
    no_credentials, monkeypatch, tmp_path
):
    no_credentials()
    place = cloud.Place("bucket", "m")
    assert asked_for(place) is NoCredentialsError
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert asked_for(place) is CloudError


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NoCredentialsError), (403, CloudError), (503, CloudError)]
)
def test_a_metadata_server_lacks_a_service_account_or_refuses_it_or_is_not_ready(
    no_credentials, monkeypatch, status, kind
):
    """A node without one, an account that the pod may not act as, and the server of a node that comes up."""
    no_credentials()

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            of_account = "/service-accounts/" in self.path
            self.send_response(status if of_account else 200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(b"googleapis.com" if "universe" in self.path else b"refused")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        where = f"127.0.0.1:{server.server_port}"
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", False)
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", where)
        monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
        monkeypatch.setenv("GCE_METADATA_IP", where)
        assert asked_for(cloud.Place("bucket", "m")) is kind
        server.shutdown()
        thread.join()


def test_a_token_that_cannot_be_had_now_may_be_had_later():
    place = cloud.Place("bucket", "m")
    for error in (TransportError(RequestsConnectionError()), RefreshError("later", retryable=True)):
        with pytest.raises(CloudError, match="no credentials") as told, cloud.said_plainly(place):
            raise error
        assert told.value.transient


def test_a_cache_that_cannot_be_written(bucket, tmp_path, monkeypatch):
    upload(bucket, {"config.json": b"{}"})
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITNET_MODEL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match=r"cannot be kept in .*another folder in BITNET_MODEL_CACHE"):
        local_copy(bucket, "")


def test_what_is_out_of_reach_is_known_within_a_minute(monkeypatch):
    # A request is tried until RETRY's time is over, and the last try may take all of TIMEOUT.
    assert cloud.RETRY.timeout + sum(cloud.TIMEOUT) < 60
    monkeypatch.setattr(cloud, "RETRY", cloud.RETRY.with_timeout(0.1))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(
        ModelUnavailable, match=r"gs://bucket/m: storage cannot be reached.*Connection refused"
    ) as told:
        local_copy("bucket", "m")
    assert told.value.transient


class Storage(ThreadingHTTPServer):
    """A bucket with one object whose server misbehaves as a test says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.content = b"{}"
        self.crc32c = base64.b64encode(google_crc32c.Checksum(self.content).digest()).decode()
        self.listing_status = self.content_status = 200
        self.fetched: list[str] = []
        """The generation that was asked for, of each request for the content."""


class _Answers(BaseHTTPRequestHandler):
    server: Storage

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.endswith("/o"):
            item = {
                "name": "config.json",
                "bucket": "bucket",
                "generation": "1234",
                "size": str(len(self.server.content)),
                "crc32c": self.server.crc32c,
            }
            self._send(self.server.listing_status, json.dumps({"items": [item]}).encode())
        elif "/o/" in url.path:
            self.server.fetched.append(parse_qs(url.query)["generation"][0])
            self._send(self.server.content_status, self.server.content)
        else:
            self._send(404, b"")  # of the bucket itself, which the client would like to know more about

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def storage(monkeypatch) -> Iterator[Storage]:
    with Storage() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def test_the_generation_that_was_listed_is_the_one_fetched(storage):
    local_copy("bucket", "")
    assert storage.fetched == ["1234"]


def test_a_bucket_that_may_not_be_read(storage):
    storage.listing_status = 403
    with pytest.raises(
        ModelUnavailable, match=r"gs://bucket/m: the bucket bucket may not be read.*objectViewer"
    ):
        local_copy("bucket", "m")


def test_credentials_that_do_not_hold(storage):
    storage.listing_status = 401
    with pytest.raises(ModelUnavailable, match=r"gs://bucket/m: there are no credentials .* that hold"):
        local_copy("bucket", "m")


def test_what_arrives_damaged_is_not_kept(storage, cache):
    storage.crc32c = "AAAAAA=="
    with pytest.raises(ModelUnavailable, match=r"gs://bucket/config\.json did not arrive .*try again"):
        local_copy("bucket", "")
    assert not [path for path in cache.iterdir() if path.is_dir() and path.suffix != ".partial"]


def test_an_object_replaced_while_it_is_fetched_is_an_error(storage):
    storage.content_status = 404
    with pytest.raises(ModelUnavailable, match=r"an object of it went while it was fetched"):
        local_copy("bucket", "")


def test_processes_of_one_machine_fetch_a_model_once(storage):
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda _: local_copy("bucket", ""), range(8)))
    assert len(set(copies)) == 1
    assert len(storage.fetched) == 1


def test_who_waited_for_a_fetch_that_failed_fails_with_its_words(storage, monkeypatch):
    """Each trying in turn, many ranks would take many times as long to say that storage is gone."""
    someone_waits = threading.Event()
    flock, fetch = cloud.fcntl.flock, cloud.fetch

    def watched_flock(file, operation):
        try:
            flock(file, operation)
        except BlockingIOError:
            someone_waits.set()
            raise

    def fetch_when_someone_waits(*arguments):
        assert someone_waits.wait(20)
        fetch(*arguments)

    def said(_):
        with pytest.raises(ModelUnavailable, match="did not arrive") as error:
            local_copy("bucket", "")
        return str(error.value), error.value.transient

    monkeypatch.setattr(cloud.fcntl, "flock", watched_flock)
    monkeypatch.setattr(cloud, "fetch", fetch_when_someone_waits)
    storage.crc32c = "AAAAAA=="
    with ThreadPoolExecutor(2) as threads:
        ((_, transient),) = set(threads.map(said, range(2)))
    assert transient
    assert len(storage.fetched) == 1
    # It is no grudge: the next one tries.
    monkeypatch.setattr(cloud, "fetch", fetch)
    said(None)
    assert len(storage.fetched) == 2
