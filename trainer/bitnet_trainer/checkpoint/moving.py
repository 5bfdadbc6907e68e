"""Checkpoints of a run that moves into its bucket: it began where there were no credentials for that."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_trainer.checkpoint.bucket import BucketStore
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed

_log = logging.getLogger(__name__)


class MovingStore:
    """The checkpoints in a bucket, and those of before in a folder of this machine.

    They are one row, by their steps: the run goes on from the newest, wherever that is. New ones go to the
    bucket. One in the folder stays until so many newer ones are there as are kept.
    """

    def __init__(self, bucket: BucketStore, folder: LocalStore) -> None:
        self._bucket, self._folder = bucket, folder
        self.address = bucket.address

    @property
    def keep(self) -> int:
        """As `CheckpointStore.keep`."""
        return self._bucket.keep

    @keep.setter
    def keep(self, newest: int) -> None:
        self._bucket.keep = newest

    def prepare(self) -> None:
        """As `CheckpointStore.prepare`: of the bucket."""
        self._bucket.prepare()

    def stage(self, step: int) -> None:
        """As `CheckpointStore.stage`."""
        self._bucket.stage(step)

    def staging(self, step: int) -> Path:
        """As `CheckpointStore.staging`."""
        return self._bucket.staging(step)

    def deliver(self, step: int) -> dict[str, Any]:
        """As `CheckpointStore.deliver`: to the bucket."""
        return self._bucket.deliver(step)

    def commit(self, step: int, files: Mapping[str, Any]) -> Committed:
        """As `CheckpointStore.commit`."""
        committed = self._bucket.commit(step, files)
        if here := self._folder.committed():
            kept = self.committed()[: self.keep]
            try:
                self._folder.prune(len([checkpoint for checkpoint in here if checkpoint in kept]))
            except OSError as error:
                _log.warning(
                    "older checkpoints in %s cannot be removed (%s)",
                    self._folder.root,
                    error.strerror or error,
                )
        return committed

    def committed(self) -> tuple[Committed, ...]:
        """As `CheckpointStore.committed`: one in the bucket before one of its step in the folder."""
        both = (*self._bucket.committed(), *self._folder.committed())
        return tuple(sorted(both, key=lambda checkpoint: checkpoint.step, reverse=True))

    def verify(self, checkpoint: Committed) -> str | None:
        """As `CheckpointStore.verify`."""
        return self._of(checkpoint).verify(checkpoint)

    def set_aside(self, checkpoint: Committed) -> None:
        """As `CheckpointStore.set_aside`."""
        self._of(checkpoint).set_aside(checkpoint)

    def read(self, checkpoint: Committed, name: str) -> bytes:
        """As `CheckpointStore.read`."""
        return self._of(checkpoint).read(checkpoint, name)

    def folder(self, checkpoint: Committed) -> Path:
        """As `CheckpointStore.folder`."""
        return self._of(checkpoint).folder(checkpoint)

    def forget(self, checkpoint: Committed) -> None:
        """As `CheckpointStore.forget`."""
        self._of(checkpoint).forget(checkpoint)

    def _of(self, checkpoint: Committed) -> CheckpointStore:
        return self._bucket if checkpoint.address.startswith("gs://") else self._folder
