"""A deleted run's removal: all of its folder or of its objects, and nothing beside them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitnet_crds import ExitCode, Order, TerminationReport, plan
from bitnet_trainer import remove as removal
from bitnet_trainer.checkpoint.address import open_store
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.remove import remove
from gcs_faults import Fault
from gcs_server import upload
from places import write
from small_specs import spec_of


def order_of(uri: str, scratch: Path | str = "/scratch", name: str = "a") -> Order:
    spec = spec_of(checkpoint={"uri": uri})
    return Order(namespace="ml", name=name, job=f"{name}-0", spec=spec, plan=plan(spec), scratch=str(scratch))


@pytest.fixture(params=["file", "gs"])
def order(request, tmp_path):
    if request.param == "file":
        return order_of(f"file://{tmp_path}/runs")
    bucket = request.getfixturevalue("bucket")
    return order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")


def of_other(order: Order) -> Order:
    """A run whose name begins with the other's."""
    return order.model_copy(update={"name": f"{order.name}b"})


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_all_of_a_run_goes_and_what_lies_beside_it_stays(order):
    others = [of_other(order), order.model_copy(update={"namespace": "ml2"})]
    for each in (order, *others):
        write(open_store(each), 5)
        (each.folder / "jobs").mkdir(parents=True)
        (each.folder / "run.json").write_text("{}")
    assert remove(order) == f"{order.address} is removed"
    assert open_store(order).committed() == ()
    assert not order.folder.exists()
    for each in others:
        assert [kept.step for kept in open_store(each).committed()] == [5]
        assert (each.folder / "run.json").exists()
    assert remove(order) == f"there was nothing at {order.address}"


def test_in_a_bucket_no_object_is_left_and_the_pods_copy_goes_too(bucket, tmp_path):
    order = order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")
    # A name that ends in a slash only stands for a folder.
    names = ["a/", "a/run.json", "a/teacher/TUNED", "a/checkpoints/step-00000001/COMMITTED", "b"]
    upload(bucket.bucket, {f"runs/ml/{name}": b"1" for name in names})
    (order.folder / "checkpoints/fetched").mkdir(parents=True)
    remove(order)
    with bucket.client() as client:
        assert [blob.name for blob in client.list_blobs(bucket.bucket)] == ["runs/ml/b"]
    assert not order.folder.exists()


def test_markers_go_first_in_a_bucket(bucket, proxy, tmp_path):
    order = order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")
    files = ("checkpoints/step-00000001/COMMITTED", "checkpoints/step-00000001/a", "teacher/TUNED", "a")
    upload(bucket.bucket, {f"runs/ml/a/{name}": b"1" for name in files})
    proxy.seen.clear()
    remove(order)
    deleted = [path.partition("?")[0] for method, path in proxy.seen if method == "DELETE"]
    assert [path.endswith(("COMMITTED", "TUNED")) for path in deleted] == [True, True, False, False]


def test_markers_go_first_in_a_folder(tmp_path, monkeypatch):
    """Killed in the middle, it leaves nothing that a run would go on from."""
    order = order_of(f"file://{tmp_path}/runs")
    write(open_store(order), 5)
    (order.folder / "teacher").mkdir()
    (order.folder / "teacher/TUNED").write_text("{}")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as at_the_files:
        at_the_files.setattr(removal.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(order)
    assert open_store(order).committed() == ()
    assert not (order.folder / "teacher/TUNED").exists()
    assert files_below(order.folder)
    remove(order)
    assert not order.folder.exists()


@pytest.mark.parametrize("link", ["runs/ml/a", "runs/ml"])
def test_a_folder_behind_a_link_is_refused(tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "a").mkdir(parents=True)
    (elsewhere / "a/mine").write_text("mine")
    (elsewhere / "mine").write_text("mine")
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"runs/ml/a is not removed: it is a link, or lies behind one"):
        remove(order_of(f"file://{tmp_path}/runs"))
    assert files_below(elsewhere) == ["a/mine", "mine"]


def test_links_in_the_folder_go_and_what_they_lead_to_stays(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("mine", "COMMITTED"):
        (tmp_path / "text" / name).write_text("mine")
    order = order_of(f"file://{tmp_path}/runs")
    order.folder.mkdir(parents=True)
    (order.folder / "text").symlink_to(tmp_path / "text")
    (order.folder / "file").symlink_to(tmp_path / "text/mine")
    remove(order)
    assert not order.folder.exists()
    assert files_below(tmp_path / "text") == ["COMMITTED", "mine"]


def test_a_root_that_is_a_link_is_the_root_that_was_named(tmp_path):
    (tmp_path / "disk/ml/a").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert remove(order_of(f"file://{tmp_path}/runs")).endswith("is removed")
    assert [path.name for path in (tmp_path / "disk/ml").iterdir()] == []


def test_a_fault_of_the_disk_is_said_plainly(tmp_path, monkeypatch):
    order = order_of(f"file://{tmp_path}/runs")
    write(open_store(order), 5)

    def fails(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(removal.shutil, "rmtree", fails)
    with pytest.raises(CheckpointError, match=r"checkpoint.uri: .*runs/ml/a cannot be removed \(Read-only"):
        remove(order)


@pytest.mark.parametrize(("status", "words"), [(403, "may not be written"), (404, "there is no bucket")])
def test_a_fault_of_storage_is_said_plainly(bucket, proxy, tmp_path, status, words):
    order = order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")
    upload(bucket.bucket, {"runs/ml/a/run.json": b"1"})
    proxy.faults = [Fault("GET", "/o", status)]
    with pytest.raises(CheckpointError, match=rf"checkpoint.uri: gs://.*{words}"):
        remove(order)


def test_what_is_written_meanwhile_is_told(bucket, tmp_path, monkeypatch):
    order = order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")
    upload(bucket.bucket, {"runs/ml/a/run.json": b"1"})
    monkeypatch.setattr(removal.cloud, "delete", lambda _: None)
    words = r"runs/ml/a/run.json was written while gs://.* was removed"
    with pytest.raises(CheckpointError, match=words) as refused:
        remove(order)
    assert refused.value.transient


def start(order_file: Path, last_word: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "BITNET_TERMINATION_LOG": str(last_word)}
    command = [sys.executable, "-m", "bitnet_trainer.remove", "--order", str(order_file)]
    return subprocess.Popen(command, env=environment)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, ExitCode.SUCCEEDED, "ml/a is removed"),
        ("{}", ExitCode.BAD_INPUT, "namespace"),
        ("link", ExitCode.CHECKPOINT_UNAVAILABLE, "is a link"),
    ],
)
def test_its_exit_code_and_last_word_say_how_it_went(tmp_path, content, code, words):
    order = order_of(f"file://{tmp_path}/runs")
    if content == "link":
        order.folder.parent.mkdir(parents=True)
        order.folder.symlink_to(tmp_path)
    else:
        write(open_store(order), 5)
    file = tmp_path / "order.json"
    file.write_text(content if content == "{}" else order.model_dump_json(by_alias=True))
    assert start(file, tmp_path / "word").wait(timeout=120) == code
    word = TerminationReport.model_validate_json((tmp_path / "word").read_text())
    assert (word.exit_code, word.reason) == (code, code.label)
    assert words in word.message
    assert order.folder.exists() == (code != ExitCode.SUCCEEDED)


def test_without_credentials_what_is_here_goes_and_what_the_bucket_has_is_not_taken_for_gone(
    tmp_path, no_credentials
):
    no_credentials()
    order = order_of("gs://bucket/runs", tmp_path / "scratch")
    write(LocalStore(order.folder / "checkpoints", 2), 5)
    with pytest.raises(CheckpointError, match="no credentials for it"):
        remove(order)
    assert not order.folder.exists()


def test_asked_to_stop_it_stops_and_says_that_the_next_try_goes_on(tmp_path):
    """The order is a pipe that nobody writes to, so that it waits where it is asked."""
    os.mkfifo(tmp_path / "order.json")
    process = start(tmp_path / "order.json", tmp_path / "word")
    writer = os.open(tmp_path / "order.json", os.O_WRONLY)  # returns once it reads
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=180) == ExitCode.PREEMPTED
    os.close(writer)
    assert "the next try goes on" in json.loads((tmp_path / "word").read_text())["message"]
