"""Checkpoints as folders on a local or mounted disk; one exists when its commit marker does."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bitnet_trainer.errors import CheckpointError

MARKER = "COMMITTED"
"""The file that is written last. It holds the size and SHA-256 of every other file of the checkpoint."""

_DAMAGED = "DAMAGED"
"""What the marker of a checkpoint is called once an older one was gone on from in its place."""


@dataclass(frozen=True)
class Committed:
    """A checkpoint whose marker is there."""

    step: int
    """Optimiser steps completed in it."""
    path: Path


class CheckpointStore:
    """The checkpoints of one run in the folder `root`, as `step-00000200/`.

    A checkpoint is written to a hidden folder, flushed, renamed, and only then marked. A process that dies
    at any point leaves either a whole checkpoint or one that nobody reads.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    def prepare(self) -> None:
        """Sees that checkpoints can be written, and clears what a killed process left half-written.

        Call it on one rank before anything costly begins. It makes no folder: a run that fails before it
        has something to keep leaves nothing behind. Raises CheckpointError.
        """
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

    def stage(self, step: int) -> Path:
        """A hidden, empty folder to write the checkpoint of `step` into. Call it on one rank."""
        staging = self.staging(step)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        except OSError as error:
            raise _cannot_write(self.root, error) from error
        return staging

    def staging(self, step: int) -> Path:
        """Where `stage` puts it: the same on every rank."""
        return self.root / f".{_name(step)}"

    def commit(self, step: int) -> Committed:
        """Makes what was staged a checkpoint, then removes all but the newest `keep`. Call it on one rank."""
        staging, final = self.staging(step), self.root / _name(step)
        try:
            # Writers flush their own files; the folder's entries and our small ones are flushed here.
            sums = {}
            for file in _files(staging):
                _flush(file)
                sums[file.relative_to(staging).as_posix()] = [file.stat().st_size, _sha256(file)]
            _flush(staging)
            # Only one without a marker can be there: one set aside, or killed before the marker was made.
            shutil.rmtree(final, ignore_errors=True)
            staging.rename(final)
            _flush(self.root)
            pending = final / f".{MARKER}"
            pending.write_text(json.dumps({"files": sums}, indent=1))
            _flush(pending)
            pending.rename(final / MARKER)
            _flush(final)
            self._prune()
        except OSError as error:
            raise _cannot_write(final, error) from error
        return Committed(step, final)

    def committed(self) -> tuple[Committed, ...]:
        """Those with a marker, newest first; whether their files are sound is for `verify` to say.

        Raises CheckpointError where that cannot be seen: a run must not start over because of it.
        """
        try:
            found = [
                Committed(int(folder.name.removeprefix("step-")), folder)
                for folder in self._folders()
                if _is_there(folder / MARKER)
            ]
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.uri: {self.root} cannot be read ({error.strerror or error}). "
                "Make it readable for the user that trains, or give another folder."
            ) from error
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True))

    def set_aside(self, damaged: Committed) -> None:
        """Takes the marker off a damaged checkpoint that a sound older one takes the place of.

        Else it would count as newest and push a sound one out. Its files stay until the next commit.
        """
        try:
            (damaged.path / MARKER).rename(damaged.path / _DAMAGED)
        except OSError as error:
            raise _cannot_write(damaged.path, error) from error

    def _folders(self) -> list[Path]:
        """Every checkpoint's folder, marked or not. Not by glob, which passes over what it may not read."""
        if not _is_there(self.root):
            return []
        return [
            entry
            for entry in self.root.iterdir()
            if entry.name.startswith("step-") and entry.name.removeprefix("step-").isdigit()
        ]

    def _unmarked(self) -> list[Path]:
        """What a process left that was killed while it wrote, between rename and marker, or while pruning."""
        if not _is_there(self.root):
            return []
        staged = [entry for entry in self.root.iterdir() if entry.name.startswith(".step-")]
        return staged + [
            folder
            for folder in self._folders()
            if not _is_there(folder / MARKER) and not _is_there(folder / _DAMAGED)
        ]

    def _prune(self) -> None:
        for old in self.committed()[self.keep :]:
            # The marker goes first: half a removal must not look like a checkpoint.
            (old.path / MARKER).unlink()
            shutil.rmtree(old.path)
        for folder in self._folders():
            if _is_there(folder / _DAMAGED):
                shutil.rmtree(folder)


def verify(checkpoint: Committed) -> str | None:
    """What is wrong with a committed checkpoint's files, compared with its marker; None where nothing is."""
    try:
        files = json.loads((checkpoint.path / MARKER).read_text())["files"]
        for name, (size, digest) in files.items():
            file = checkpoint.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes and should have {size}"
            if _sha256(file) != digest:
                return f"{name} has other content than was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its marker or a file cannot be read ({error})"
    return None


def _is_there(path: Path) -> bool:
    """As Path.exists, but OSError where it cannot be seen, whatever Python's version."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint.uri: {path} cannot be written ({error.strerror or error}). Make it writable for "
        "the user that trains, free some space, or give another folder."
    )
