"""Writing checkpoints in a thread of its own, while training goes on."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bitnet_trainer.checkpoint.state import Copier, Position, Training, random_state, write_tensors
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed
from bitnet_trainer.checkpoint.together import on_all

_log = logging.getLogger(__name__)

Inference = Callable[[Path, Mapping[str, torch.Tensor]], object]
"""Writes the model to run into a folder, from its whole weights on the CPU."""


@dataclass(frozen=True)
class _Snapshot:
    """All of a run's state at the end of a step, which nothing changes any more."""

    position: Position
    tensors: dict[str, Any]
    inference: Callable[[Path], object] | None
    """Writes the model to run, on the first rank."""


class Saver:
    """Writes checkpoints, one at a time. Every rank has one, and calls it at the same steps."""

    def __init__(
        self,
        store: CheckpointStore,
        training: Training,
        group: dist.ProcessGroup,
        inference: Inference | None = None,
        after_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            store: where checkpoints are kept.
            training: what they hold.
            group: a process group for CPU tensors that nothing but this saver uses: its thread talks to the
                other ranks' while training does, and two threads must not share a group.
            inference: given, each checkpoint holds the model to run too.
            after_commit: called in the thread of the first rank when one is committed.
        """
        self._store, self._training, self._group = store, training, group
        self._inference, self._after_commit = inference, after_commit
        self._copier = Copier(training)
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._coming: Future[Committed] | None = None
        self.seconds: float | None = None
        """What the last committed one took, from the copy of the state to the commit."""

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint was begun and its outcome not yet asked for."""
        return self._coming is not None

    @property
    def settled(self) -> bool:
        """Whether the outcome of the one in flight is known here; a moment later it is on every rank."""
        return self._coming is not None and self._coming.done()

    def keep(self, newest: int) -> None:
        """From the next commit on, so many of the newest stay."""
        self._store.keep = newest

    def begin(self, position: Position) -> None:
        """Copies the state as it is now, and begins to write it. The one before must have been taken up."""
        assert not self.in_flight
        begun = time.monotonic()
        snapshot = _copied(self._training, position, self._group, self._copier, self._inference)
        self._coming = self._thread.submit(self._timed, snapshot, begun)

    def _timed(self, snapshot: _Snapshot, begun: float) -> Committed:
        committed = _write(self._store, snapshot, self._group, self._after_commit)
        self.seconds = time.monotonic() - begun
        return committed

    def outcome(self) -> Committed:
        """Waits for the one in flight, and takes it up. Raises on every rank alike what went wrong on any:
        CheckpointError, or an error that nobody foresaw."""
        coming, self._coming = self._coming, None
        assert coming is not None
        return coming.result()

    def close(self) -> Committed | None:
        """Ends the thread, when it is done with what it has begun: the checkpoint that was still in flight.

        What went wrong with that one is logged, and raised no more: something else ended the run.
        """
        self._thread.shutdown()
        self._copier.close()
        coming, self._coming = self._coming, None
        if coming is None:
            return None
        error = coming.exception()
        if error is None:
            return coming.result()
        _log.error("the checkpoint that was being written was not committed", exc_info=error)
        return None


def _copied(
    training: Training,
    position: Position,
    group: dist.ProcessGroup,
    copier: Copier,
    inference: Inference | None,
) -> _Snapshot:
    tensors = copier.copy(training.tensors(random_state(group)))
    ready = None
    if inference is not None:
        weights = training.full_weights(tensors["model"])
        ready = partial(_written_by, inference, weights) if dist.get_rank(group) == 0 else None
    return _Snapshot(position, tensors, ready)


def _written_by(inference: Inference, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    inference(folder, weights)


def _write(
    store: CheckpointStore,
    snapshot: _Snapshot,
    group: dist.ProcessGroup,
    after_commit: Callable[[], None],
) -> Committed:
    """The one course of every checkpoint. What goes wrong in a part is known to all ranks before the next."""
    step, first = snapshot.position.step, dist.get_rank(group) == 0
    on_all(group, lambda: store.stage(step))
    write_tensors(store.staging(step), snapshot.tensors, group)

    def complete() -> None:
        if first:
            snapshot.position.write(store.staging(step))
            if snapshot.inference is not None:
                snapshot.inference(store.staging(step) / "inference")

    # All of it before any rank looks at what is there: what is being written has other names.
    on_all(group, complete)
    delivered = on_all(group, lambda: store.deliver(step))
    files = {name: said for each in delivered for name, said in each.items()}

    def commit() -> Committed | None:
        if not first:
            return None
        committed = store.commit(step, files)
        after_commit()
        return committed

    committed = on_all(group, commit)[0]
    assert committed is not None
    return committed
