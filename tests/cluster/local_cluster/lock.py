"""Keeps two processes from running a cluster in the same work folder."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from local_cluster.errors import LocalClusterError


class WorkFolderLock:
    """Held from a cluster's start to its stop, or to the end of the process, however that ends."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises LocalClusterError where another process, or object, holds it."""
        if self._file is not None:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        file = (self.work / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            mend = "wait for it, or stop it with python3 -m local_cluster down"
            raise LocalClusterError(f"another process runs a cluster in {self.work}: {mend}") from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
