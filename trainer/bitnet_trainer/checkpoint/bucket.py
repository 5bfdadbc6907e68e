"""Checkpoints in Google Cloud Storage; one exists when its commit marker does."""

import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitnet_trainer import cloud
from bitnet_trainer.checkpoint.store import DAMAGED, MARKER, Committed, name_of, step_of
from bitnet_trainer.cloud import CloudError, Place
from bitnet_trainer.errors import CheckpointError

_log = logging.getLogger(__name__)


class BucketStore:
    """The checkpoints of one run in a bucket, as `step-00000200/`.

    Each rank writes its files into a folder of its own on its machine, and uploads them from there; machines
    share no disk. Data and marker are written where nothing is, so that of two processes that train one run
    by mistake one at most commits a step. The marker holds size, CRC32C and generation of every object, and
    storage tells these without a download.
    """

    def __init__(self, bucket: str, path: str, keep: int, scratch: Path, rank: int = 0) -> None:
        """
        Args:
            bucket: its name.
            path: of the folder of checkpoints in it.
            keep: how many of the newest stay.
            scratch: a folder on this machine.
            rank: of this process.
        """
        self._place, self.keep, self._scratch, self._rank = Place(bucket, path), keep, scratch, rank
        self._writer, self._aside = uuid.uuid4().hex, set[int]()
        self.address = str(self._place)

    def prepare(self) -> None:
        """As `CheckpointStore.prepare`. It writes an object and deletes it."""
        with self._bucket() as bucket:
            for step, blobs in self._by_step(bucket).items():
                if not blobs.keys() & {MARKER, DAMAGED}:
                    _delete(blobs.values())
                elif DAMAGED in blobs:
                    self._aside.add(step)
            with tempfile.NamedTemporaryFile() as empty:
                name = f"{self._place.path}/.probe-{self._writer}"
                cloud.delete(cloud.upload(bucket, name, Path(empty.name), self._writer))

    def stage(self, step: int) -> None:
        """As `CheckpointStore.stage`."""
        if step in self._aside:
            # Data is written only where nothing is.
            with self._bucket() as bucket:
                _delete(self._by_step(bucket, step).get(step, {}).values())
            self._aside.discard(step)
        staging = self.staging(step)
        with self._scratch_said_plainly():
            shutil.rmtree(staging.parent, ignore_errors=True)
            staging.mkdir(parents=True)

    def staging(self, step: int) -> Path:
        """A folder of this rank alone."""
        return self._scratch / f"staged-{self._rank}" / name_of(step)

    def deliver(self, step: int) -> dict[str, Any]:
        """Uploads what this rank wrote."""
        staging = self.staging(step)
        said: dict[str, Any] = {}
        with self._scratch_said_plainly(), self._bucket() as bucket:
            for file in sorted(file for file in staging.rglob("*") if file.is_file()):
                name = file.relative_to(staging).as_posix()
                blob = cloud.upload(bucket, self._object(step, name), file, self._writer)
                said[name] = _described(blob)
        shutil.rmtree(staging.parent, ignore_errors=True)
        return said

    def commit(self, step: int, files: Mapping[str, Any]) -> Committed:
        """As `CheckpointStore.commit`."""
        committed = Committed(step, f"{self.address}/{name_of(step)}")
        with self._bucket() as bucket:
            fault = _fault(self._by_step(bucket, step).get(step, {}), files)
            if fault is not None:
                raise CheckpointError(
                    f"checkpoint.uri: {committed.address} is not as it was written: {fault}. See that only "
                    "one process trains this run, and that nobody else writes there."
                )
            with self._scratch_said_plainly(), tempfile.TemporaryDirectory() as folder:
                marker = Path(folder) / MARKER
                marker.write_text(json.dumps({"files": files}, indent=1))
                cloud.upload(bucket, self._object(step, MARKER), marker, self._writer)
            try:
                with cloud.said_plainly(self._place, cloud.WRITING):
                    self._prune(bucket, step)
            except CloudError as error:
                _log.warning("older checkpoints cannot be removed: %s", error)
        return committed

    def committed(self) -> tuple[Committed, ...]:
        """As `CheckpointStore.committed`."""
        with self._bucket(cloud.READING) as bucket:
            steps = [step for step, blobs in self._by_step(bucket).items() if MARKER in blobs]
        return tuple(
            Committed(step, f"{self.address}/{name_of(step)}") for step in sorted(steps, reverse=True)
        )

    def verify(self, checkpoint: Committed) -> str | None:
        """As `CheckpointStore.verify`; it downloads the marker alone."""
        with self._bucket(cloud.READING) as bucket:
            blobs = self._by_step(bucket, checkpoint.step).get(checkpoint.step, {})
            if MARKER not in blobs:
                return "its marker is missing"
            try:
                files = json.loads(blobs[MARKER].download_as_bytes(timeout=cloud.TIMEOUT, retry=cloud.RETRY))[
                    "files"
                ]
                return _fault(blobs, files)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                return f"its marker cannot be read ({error})"

    def set_aside(self, checkpoint: Committed) -> None:
        """As `CheckpointStore.set_aside`."""
        with self._bucket() as bucket:
            blobs = self._by_step(bucket, checkpoint.step).get(checkpoint.step, {})
            bucket.blob(self._object(checkpoint.step, DAMAGED)).upload_from_string(
                "", timeout=cloud.TIMEOUT, retry=cloud.RETRY
            )
            _delete([blobs[MARKER]] if MARKER in blobs else [])
        self._aside.add(checkpoint.step)

    def read(self, checkpoint: Committed, name: str) -> bytes:
        """As `CheckpointStore.read`."""
        with self._bucket(cloud.READING) as bucket:
            content: bytes = bucket.blob(self._object(checkpoint.step, name)).download_as_bytes(
                timeout=cloud.TIMEOUT, retry=cloud.RETRY
            )
        return content

    def folder(self, checkpoint: Committed) -> Path:
        """A copy of it, fetched once for all processes of this machine."""
        place = Place(self._place.bucket, f"{self._place.path}/{checkpoint.name}")
        with self._scratch_said_plainly(), self._said_plainly(cloud.READING):
            return cloud.copied_to(place, self._fetched, nested=True)

    def forget(self, checkpoint: Committed) -> None:  # noqa: ARG002
        """Removes what `folder` fetched, of any checkpoint."""
        shutil.rmtree(self._fetched, ignore_errors=True)

    @property
    def _fetched(self) -> Path:
        return self._scratch / "fetched"

    def _object(self, step: int, name: str) -> str:
        return f"{self._place.path}/{name_of(step)}/{name}"

    def _by_step(self, bucket: Any, step: int | None = None) -> dict[int, dict[str, Any]]:
        """The blobs of each checkpoint, or of one, marked or not, by their names in it."""
        prefix = f"{self._place.path}/" + ("" if step is None else f"{name_of(step)}/")
        found: dict[int, dict[str, Any]] = {}
        for blob in bucket.list_blobs(prefix=prefix, timeout=cloud.TIMEOUT, retry=cloud.RETRY):
            folder, _, name = blob.name.removeprefix(f"{self._place.path}/").partition("/")
            of = step_of(folder)
            if of is not None and name:
                found.setdefault(of, {})[name] = blob
        return found

    def _prune(self, bucket: Any, newest: int) -> None:
        by_step = self._by_step(bucket)
        kept = sorted((step for step, blobs in by_step.items() if MARKER in blobs), reverse=True)[: self.keep]
        for step, blobs in by_step.items():
            # What is newer and has no marker may be another process's, which its next start clears.
            if step not in kept and (MARKER in blobs or DAMAGED in blobs or step < newest):
                _delete(blobs.values())

    @contextmanager
    def _bucket(self, access: cloud.Access = cloud.WRITING) -> Iterator[Any]:
        """The bucket, of a client that lives as long; its faults are CheckpointErrors."""
        with self._said_plainly(access), cloud.connected() as client:
            yield client.bucket(self._place.bucket)

    @contextmanager
    def _said_plainly(self, access: cloud.Access) -> Iterator[None]:
        try:
            with cloud.said_plainly(self._place, access):
                yield
        except CloudError as error:
            raise CheckpointError(f"checkpoint.uri: {error}.", transient=error.transient) from error

    @contextmanager
    def _scratch_said_plainly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.uri: what goes to {self.address} cannot be kept in {self._scratch} meanwhile "
                f"({error.strerror or error}). Make room there: in a pod it is the volume `cache`, which "
                "workers.template may replace."
            ) from error


def _described(blob: Any) -> dict[str, Any]:
    return {"size": blob.size, "crc32c": blob.crc32c, "generation": str(blob.generation)}


def _fault(blobs: Mapping[str, Any], files: Mapping[str, Any]) -> str | None:
    """How the objects of a checkpoint differ from what its marker says."""
    for name, said in files.items():
        if name not in blobs:
            return f"{name} is missing"
        found = _described(blobs[name])
        if found["size"] != said["size"]:
            return f"{name} has {found['size']} bytes and should have {said['size']}"
        if found != said:
            return f"{name} has other content than was written"
    return None


def _delete(blobs: Iterable[Any]) -> None:
    """The marker first: half a removal must not look like a checkpoint."""
    for blob in sorted(blobs, key=lambda blob: not blob.name.endswith(f"/{MARKER}")):
        cloud.delete(blob)
