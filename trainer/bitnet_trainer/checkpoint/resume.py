"""Saving all of a run's state, and finding the newest checkpoint that may be gone on from."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from bitnet_trainer.checkpoint.state import Position, read_tensors, write_tensors
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed, verify
from bitnet_trainer.errors import BadInput, CheckpointError

_log = logging.getLogger(__name__)


def save(
    store: CheckpointStore,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: dist.ProcessGroup,
    inference: Callable[[Path], object] | None = None,
) -> Committed:
    """Writes and commits a checkpoint; every rank calls it, and each returns when it is committed.

    `group` is a process group for CPU tensors. `inference` writes the model to run into a folder of that
    name inside, on the first rank. Raises CheckpointError.
    """
    first = dist.get_rank(group) == 0
    staging = store.stage(position.step) if first else store.staging(position.step)
    dist.barrier(group)
    write_tensors(staging, model, optimizer, group)
    dist.barrier(group)
    if first:
        position.write(staging)
        if inference is not None:
            inference(staging / "inference")
        committed = store.commit(position.step)
    else:
        committed = Committed(position.step, store.root / staging.name.removeprefix("."))
    dist.barrier(group)
    return committed


def newest_sound(store: CheckpointStore) -> Committed | None:
    """The newest committed checkpoint whose files are as written; None where none was ever committed.

    Damaged ones that are newer are set aside, and removed when the next one is committed. Raises
    CheckpointError where there are some and none is sound: starting over would throw the run away.
    """
    faults: dict[Committed, str] = {}
    for checkpoint in store.committed():
        fault = verify(checkpoint)
        if fault is None:
            for damaged in faults:
                store.set_aside(damaged)
            return checkpoint
        _log.warning("checkpoint %s is damaged and is passed over: %s", checkpoint.path, fault)
        faults[checkpoint] = fault
    if faults:
        each = "; ".join(f"{damaged.path.name}: {fault}" for damaged, fault in faults.items())
        raise CheckpointError(
            f"no checkpoint in {store.root} is sound ({each}). Restore one, or remove them all "
            "to begin this run again from its first step."
        )
    return None


def check_position(found: Position, checkpoint: Committed, ledger_hash: str, data_fingerprint: str) -> None:
    """Raises BadInput where a checkpoint belongs to another ledger or other text than this run's."""
    mend = f"Give the run another name or checkpoint.uri, or remove {checkpoint.path.parent} to begin again."
    if found.ledger_hash != ledger_hash:
        raise BadInput(
            f"{checkpoint.path} was written under ledger {found.ledger_hash} and this run's is "
            f"{ledger_hash}: what it trains changed since (model, classification, teacher, optimizer, "
            "quantization, mixture, budget, phases, schedule or seed). "
            f"Undo that change. {mend}"
        )
    if found.data_fingerprint != data_fingerprint:
        raise BadInput(
            f"{checkpoint.path} was trained on text {found.data_fingerprint[:16]} and this run's is "
            f"{data_fingerprint[:16]}: files, weights, tokenizer or seed changed since. "
            f"Undo that change. {mend}"
        )


def load(
    checkpoint: Committed,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: dist.ProcessGroup,
) -> None:
    """Loads weights, optimiser and random state in place; every rank calls it."""
    _log.info("going on from %s, which %d ranks wrote", checkpoint.path, position.world_size)
    read_tensors(checkpoint.path, model, optimizer, group)
