"""Checkpoints as folders on a local or mounted disk; one exists when its commit marker does."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_trainer.checkpoint.store import DAMAGED, MARKER, Committed, name_of, step_of, writer_of
from bitnet_trainer.cloud import crc32c_of
from bitnet_trainer.errors import CheckpointError

_log = logging.getLogger(__name__)


class LocalStore:
    """The checkpoints of one run in the folder `root`, as `step-00000200/`, that all ranks see.

    A checkpoint is written to a hidden folder, flushed, renamed, and only then marked. The marker holds the
    size and SHA-256 of every other file.
    """

    def __init__(self, root: Path, keep: int, rank: int = 0) -> None:
        self.root, self.keep, self._rank = root, keep, rank
        self.address = str(root)

    def prepare(self) -> None:
        """As `CheckpointStore.prepare`. It makes no folder: a run that fails before it has something to keep
        leaves nothing behind."""
        try:
            # First, since what was left may be what filled the disk.
            for leftover in self._unmarked():
                shutil.rmtree(leftover)
            there = next(folder for folder in (self.root, *self.root.parents) if _is_there(folder))
            with tempfile.NamedTemporaryFile(dir=there, prefix=".probe-") as probe:
                probe.write(b"\0")
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise _cannot_write(self.root, error) from error

    def stage(self, step: int) -> None:
        """As `CheckpointStore.stage`."""
        if self._rank != 0:
            return
        staging = self.staging(step)
        try:
            # Also what a checkpoint that could not be written left: it may be what filled the disk.
            for leftover in self._unmarked():
                shutil.rmtree(leftover)
            staging.mkdir(parents=True)
        except OSError as error:
            raise _cannot_write(self.root, error) from error

    def staging(self, step: int) -> Path:
        """The same on every rank."""
        return self.root / f".{name_of(step)}"

    def deliver(self, step: int) -> dict[str, Any]:
        """Flushes this rank's files where they are, and sums them up."""
        staging = self.staging(step)
        sums: dict[str, Any] = {}
        try:
            for file in sorted(file for file in staging.rglob("*") if file.is_file()):
                name = file.relative_to(staging).as_posix()
                if writer_of(name) == self._rank:
                    flush(file)
                    sums[name] = [file.stat().st_size, _sha256(file)]
        except OSError as error:
            raise _cannot_write(staging, error) from error
        return sums

    def commit(self, step: int, files: Mapping[str, Any]) -> Committed:
        """As `CheckpointStore.commit`."""
        staging, final = self.staging(step), self.root / name_of(step)
        try:
            for folder in {(staging / name).parent for name in files} | {staging}:
                flush(folder)
            # Only one without a marker can be there: one set aside, or killed before the marker was made.
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
            flush(self.root)
            pending = final / f".{MARKER}"
            pending.write_text(json.dumps({"files": files}, indent=1))
            flush(pending)
            pending.rename(final / MARKER)
            flush(final)
        except OSError as error:
            raise _cannot_write(final, error) from error
        try:
            self.prune(self.keep)
        except OSError as error:
            _log.warning("older checkpoints in %s cannot be removed (%s)", self.root, error.strerror or error)
        return Committed(step, str(final))

    def committed(self) -> tuple[Committed, ...]:
        """As `CheckpointStore.committed`."""
        try:
            found = [
                Committed(step, str(folder))
                for step, folder in self._folders().items()
                if _is_there(folder / MARKER)
            ]
        except OSError as error:
            raise _cannot_read(self.root, error) from error
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True))

    def verify(self, checkpoint: Committed) -> str | None:
        """As `CheckpointStore.verify`; it reads every file. It may have been copied here out of a bucket."""
        folder = Path(checkpoint.address)
        try:
            files = json.loads((folder / MARKER).read_text())["files"]
            for name, said in files.items():
                of_bucket = isinstance(said, dict)
                size, digest = (said["size"], said["crc32c"]) if of_bucket else said
                file = folder / name
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != size:
                    return f"{name} has {file.stat().st_size} bytes and should have {size}"
                if (crc32c_of(file) if of_bucket else _sha256(file)) != digest:
                    return f"{name} has other content than was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its marker or a file cannot be read ({error})"
        return None

    def set_aside(self, checkpoint: Committed) -> None:
        """As `CheckpointStore.set_aside`."""
        folder = Path(checkpoint.address)
        try:
            (folder / MARKER).rename(folder / DAMAGED)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def read(self, checkpoint: Committed, name: str) -> bytes:
        """As `CheckpointStore.read`."""
        path = Path(checkpoint.address) / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise _cannot_read(path, error) from error

    def folder(self, checkpoint: Committed) -> Path:
        """Where it is."""
        return Path(checkpoint.address)

    def forget(self, checkpoint: Committed) -> None:
        """Nothing was fetched."""

    def _folders(self) -> dict[int, Path]:
        """Every checkpoint's folder, marked or not. Not by glob, which passes over what it may not read."""
        if not _is_there(self.root):
            return {}
        found = {step_of(entry.name): entry for entry in self.root.iterdir()}
        return {step: entry for step, entry in found.items() if step is not None}

    def _unmarked(self) -> list[Path]:
        """What a process left that was killed while it wrote, between rename and marker, or while pruning."""
        if not _is_there(self.root):
            return []
        staged = [entry for entry in self.root.iterdir() if entry.name.startswith(".step-")]
        return staged + [
            folder
            for folder in self._folders().values()
            if not _is_there(folder / MARKER) and not _is_there(folder / DAMAGED)
        ]

    def prune(self, kept: int) -> None:
        """Removes all but so many of the newest, and what was set aside. Raises OSError."""
        for old in self.committed()[kept:]:
            # The marker goes first: half a removal must not look like a checkpoint.
            (Path(old.address) / MARKER).unlink()
            shutil.rmtree(Path(old.address))
        for folder in self._folders().values():
            if _is_there(folder / DAMAGED):
                shutil.rmtree(folder)


def _is_there(path: Path) -> bool:
    """As Path.exists, but OSError where it cannot be seen, whatever Python's version."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, would outlast a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_read(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint.uri: {path} cannot be read ({error.strerror or error}). "
        "Make it readable for the user that trains, or give another folder."
    )


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint.uri: {path} cannot be written ({error.strerror or error}). Make it writable for "
        "the user that trains, free some space, or give another folder."
    )
