"""Places where a run's checkpoints are kept, each with what a test does behind a store's back."""

from pathlib import Path
from typing import Any, Protocol

from google.cloud import storage

from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed


class Place(Protocol):
    """The checkpoints of one run, wherever they are."""

    def store(self, keep: int = 2) -> CheckpointStore:
        """As a process of that run opens it."""

    def names(self) -> set[str]:
        """Everything that lies there, such as `step-00000005/part`."""

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, over what is there."""

    def remove(self, name: str) -> None:
        """Removes a file."""


def write(store: CheckpointStore, step: int) -> Committed:
    """Commits a checkpoint of two files."""
    store.stage(step)
    fill(store, step)
    return store.commit(step, store.deliver(step))


def fill(store: CheckpointStore, step: int) -> None:
    """Writes two files to where they are staged."""
    folder = store.staging(step)
    (folder / "part").write_bytes(bytes([step]) * 100)
    (folder / "nested").mkdir()
    (folder / "nested" / "part").write_bytes(b"more")


class LocalPlace:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def store(self, keep: int = 2) -> LocalStore:
        return LocalStore(self.root, keep)

    def names(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file()}

    def put(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class BucketPlace:
    """A bucket of a server on this machine."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.bucket, self.scratch = name, scratch
        with self.client() as client:
            client.create_bucket(name)

    @staticmethod
    def client() -> Any:
        return storage.Client(project="tests")

    def store(self, keep: int = 2) -> BucketStore:
        return BucketStore(self.bucket, "runs/default/tiny/checkpoints", keep, self.scratch)

    def names(self) -> set[str]:
        with self.client() as client:
            blobs = client.list_blobs(self.bucket, prefix="runs/default/tiny/checkpoints/")
            return {blob.name.removeprefix("runs/default/tiny/checkpoints/") for blob in blobs}

    def put(self, name: str, content: bytes) -> None:
        with self.client() as client:
            blob = client.bucket(self.bucket).blob(f"runs/default/tiny/checkpoints/{name}")
            blob.upload_from_string(content)

    def remove(self, name: str) -> None:
        with self.client() as client:
            client.bucket(self.bucket).delete_blob(f"runs/default/tiny/checkpoints/{name}")
