"""Checkpoints in a bucket: what goes wrong is said, and no fault and no second writer makes half of one."""

import json
import os
import signal

import pytest
from google.cloud import storage
from requests import Session

from bitnet_trainer import cloud
from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.resume import newest_sound
from bitnet_trainer.checkpoint.store import MARKER
from bitnet_trainer.errors import CheckpointError
from gcs_faults import Fault
from places import fill, write

UPLOADS, OBJECTS, DOWNLOADS = r"^/upload/", r"/o\b", "alt=media"


@pytest.fixture
def store(bucket):
    return bucket.store()


def large(store, step):
    """Stages a checkpoint with a file of five chunks."""
    store.stage(step)
    (store.staging(step) / "__0_0.distcp").write_bytes(os.urandom(5 * 2**18 - 1))


@pytest.fixture
def chunks(monkeypatch):
    """Small ones, each a request of its own."""
    monkeypatch.setattr(cloud, "CHUNK_BYTES", 2**18)
    monkeypatch.setattr(storage.blob, "_MAX_MULTIPART_SIZE", 2**18)


FAULTS = {
    401: r"there are no credentials .* that hold.*roles/storage\.objectUser.*GOOGLE_APPLICATION_CREDENTIALS",
    403: r"the bucket .* may not be written.*give the service account the role roles/storage\.objectUser",
    404: "there is no bucket .*make the bucket",
    503: "storage cannot be reached, or does not answer.*check this machine's way",
    "drop": "storage cannot be reached, or does not answer.*check this machine's way",
}


@pytest.mark.parametrize(
    ("moment", "what"),
    [*(("start", what) for what in FAULTS), ("upload", 403), ("upload", 503), ("commit", "drop")],
)
def test_each_fault_says_what_where_and_the_mend(proxy, store, what, moment):
    write(store, 5)
    if moment == "start":
        proxy.faults = [Fault("GET", OBJECTS, what)]
        action = store.prepare
    else:
        store.stage(10)
        fill(store, 10)
        delivered = store.deliver(10) if moment == "commit" else {}
        proxy.faults = [Fault("POST", UPLOADS, what)]
        action = (lambda: store.deliver(10)) if moment == "upload" else lambda: store.commit(10, delivered)
    with pytest.raises(
        CheckpointError, match=rf"checkpoint\.uri: gs://.*/checkpoints: {FAULTS[what]}"
    ) as told:
        action()
    assert told.value.transient is (what in (503, "drop"))
    proxy.faults = []
    assert newest_sound(store).step == 5
    write(store, 15)
    assert newest_sound(store).step == 15


def test_no_bucket(proxy, tmp_path):
    store = BucketStore("nowhere", "runs/x", 1, tmp_path)
    assert proxy
    with pytest.raises(CheckpointError, match="there is no bucket nowhere"):
        store.prepare()


def test_a_bucket_that_may_be_read_and_not_written_is_known_before_training(proxy, store):
    proxy.faults = [Fault("POST", UPLOADS, 403)]
    with pytest.raises(CheckpointError, match="may not be written"):
        store.prepare()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("what", [503, 429, "drop"])
def test_what_passes_is_tried_again_chunk_by_chunk(proxy, store, what):
    large(store, 5)
    proxy.faults = [Fault("PUT", UPLOADS, what, times=2), Fault("POST", UPLOADS, what, times=1)]
    committed = store.commit(5, store.deliver(5))
    assert store.verify(committed) is None
    assert len([path for method, path in proxy.seen if method == "PUT"]) == 5 + 2
    assert (store.folder(committed) / "__0_0.distcp").stat().st_size == 5 * 2**18 - 1


def test_an_upload_whose_answer_was_lost_is_known_for_its_own(proxy, store):
    proxy.faults = [Fault("POST", UPLOADS, "lose the answer", times=1)]
    committed = write(store, 5)
    assert store.verify(committed) is None
    proxy.faults = [Fault("POST", rf"{UPLOADS}.*", "lose the answer", times=3)]
    assert store.verify(write(store, 10)) is None


def test_what_arrives_damaged_is_refused_by_storage(store, monkeypatch):
    real = cloud.crc32c_of
    monkeypatch.setattr(cloud, "crc32c_of", lambda file: "AAAAAA==" if file.name == "part" else real(file))
    with pytest.raises(CheckpointError, match=r"part did not arrive as it is here: storage names the CRC32C"):
        write(store, 5)
    assert newest_sound(store) is None


def test_of_two_writers_one_commits(bucket, tmp_path):
    """Not even where each has all its data there: what one wrote, the other does not take for its own."""
    one, other = (
        bucket.store(),
        BucketStore(bucket.bucket, "runs/default/tiny/checkpoints", 2, tmp_path / "other"),
    )
    for store in (one, other):
        store.stage(5)
        fill(store, 5)
    delivered = one.deliver(5)
    with pytest.raises(
        CheckpointError, match=r"is there already, and another process wrote it; see that only"
    ):
        other.deliver(5)
    committed = one.commit(5, delivered)
    with pytest.raises(CheckpointError, match=r"COMMITTED is there already, and another process wrote it"):
        other.commit(5, delivered)
    assert one.verify(committed) is None


def test_a_writer_whose_files_another_one_cleared_does_not_commit(bucket):
    one, other = bucket.store(), bucket.store()
    one.stage(5)
    fill(one, 5)
    delivered = one.deliver(5)
    other.prepare()
    with pytest.raises(CheckpointError, match=r"is missing\. See that only one process trains this run"):
        one.commit(5, delivered)
    assert bucket.names() == set()
    write(other, 5)
    with pytest.raises(CheckpointError, match=r"other content"):
        one.commit(5, delivered)


def test_the_marker_is_written_last_and_names_what_storage_holds(bucket, store, proxy):
    committed = write(store, 5)
    written = [path for method, path in proxy.seen if method in ("POST", "PUT") and "/upload/" in path]
    assert len(written) == 3
    assert all("ifGenerationMatch=0" in path for path in written)
    marker = json.loads(store.read(committed, MARKER))["files"]
    with bucket.client() as client:
        blobs = {blob.name.partition("step-00000005/")[2]: blob for blob in client.list_blobs(bucket.bucket)}
    assert blobs.keys() == {*marker, MARKER}
    assert min(int(blob.generation) for name, blob in blobs.items() if name == MARKER) == max(
        int(blob.generation) for blob in blobs.values()
    )
    for name, said in marker.items():
        assert said == {
            "size": blobs[name].size,
            "crc32c": blobs[name].crc32c,
            "generation": str(blobs[name].generation),
        }


def test_one_that_a_person_copied_to_a_folder_is_sound_there(bucket, store, tmp_path):
    committed = write(store, 5)
    with bucket.client() as client:
        for blob in client.list_blobs(bucket.bucket):
            path = tmp_path / "copy" / blob.name.partition("checkpoints/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(path)
    copied = LocalStore(tmp_path / "copy", keep=2)
    assert newest_sound(copied).step == committed.step
    (tmp_path / "copy" / "step-00000005" / "part").write_bytes(b"x" * 100)
    assert "other content" in copied.verify(copied.committed()[0])


def test_it_is_verified_without_a_download(store, proxy):
    committed = write(store, 5)
    proxy.seen.clear()
    assert store.verify(committed) is None
    assert [path for _, path in proxy.seen if DOWNLOADS in path and MARKER not in path] == []


def test_old_ones_that_cannot_be_removed_are_no_reason_to_stop(store, proxy, caplog):
    proxy.faults = [Fault("DELETE", OBJECTS, 403)]
    for step in (5, 10, 15):
        committed = write(store, step)
    assert newest_sound(store) == committed
    assert "older checkpoints cannot be removed: gs://" in caplog.text
    proxy.faults = []
    write(store, 20)
    assert [each.step for each in store.committed()] == [20, 15]


def test_deletes_name_the_generation_that_was_listed_and_the_marker_goes_first(store, proxy):
    for step in (5, 10, 15):
        write(store, step)
    deleted = [path for method, path in proxy.seen if method == "DELETE"]
    assert len(deleted) == 3
    assert MARKER in deleted[0]
    assert all("ifGenerationMatch=" in path for path in deleted)


def test_a_machine_without_room_says_so(bucket, tmp_path):
    (tmp_path / "scratch").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be kept in .*scratch meanwhile .*volume `cache`"):
        bucket.store().stage(5)


def test_what_was_fetched_is_fetched_once_and_let_go_of(store, proxy):
    committed = write(store, 5)
    folder = store.folder(committed)
    proxy.seen.clear()
    assert store.folder(committed) == folder
    assert [path for _, path in proxy.seen if DOWNLOADS in path] == []
    store.forget(committed)
    assert not folder.exists()


def killed_at(store, request):
    """Commits steps 5 and 10, keeping one, in a process that is killed before its `request`-th request."""
    child = os.fork()
    if child == 0:
        try:
            real, counted = Session.request, iter(range(request))

            def deadly(self, *arguments, **options):
                if next(counted, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, *arguments, **options)

            Session.request = deadly
            for step in (5, 10):
                store.stage(step)
                (store.staging(step) / "part").write_bytes(b"part")
                store.commit(step, store.deliver(step))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def test_killed_at_any_request_it_leaves_whole_checkpoints_or_such_that_nobody_reads(bucket, tmp_path):
    """Trap 10."""
    last, request = -1, 0
    while True:
        store = BucketStore(bucket.bucket, f"runs/{request}", 1, tmp_path)
        killed = killed_at(store, request)
        found = newest_sound(store)
        assert all(store.verify(each) is None for each in store.committed())
        assert (found.step if found else 0) >= last
        last = found.step if found else 0
        store.prepare()
        with bucket.client() as client:
            left = [blob.name for blob in client.list_blobs(bucket.bucket, prefix=f"runs/{request}/")]
        assert len(left) == 2 * len(store.committed())
        if not killed:
            break
        request += 1
    assert last == 10
    assert request > 8
