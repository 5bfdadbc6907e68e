"""Finding the newest checkpoint that may be gone on from, and going on from it."""

import logging

import torch.distributed as dist

from bitnet_trainer.checkpoint.state import POSITION, Position, Training, read_tensors
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed
from bitnet_trainer.errors import BadInput, CheckpointError

_log = logging.getLogger(__name__)


def newest_sound(store: CheckpointStore) -> Committed | None:
    """The newest committed checkpoint whose files are as written; None where none was ever committed.

    Damaged ones that are newer are set aside, and removed when the next one is committed. Raises
    CheckpointError where there are some and none is sound: starting over would throw the run away.
    """
    faults: dict[Committed, str] = {}
    for checkpoint in store.committed():
        fault = store.verify(checkpoint)
        if fault is None:
            for damaged in faults:
                store.set_aside(damaged)
            return checkpoint
        _log.warning("checkpoint %s is damaged and is passed over: %s", checkpoint.address, fault)
        faults[checkpoint] = fault
    if faults:
        each = "; ".join(f"{damaged.name}: {fault}" for damaged, fault in faults.items())
        raise CheckpointError(
            f"no checkpoint in {store.address} is sound ({each}). Restore one, or remove them all "
            "to begin this run again from its first step."
        )
    return None


def read_position(store: CheckpointStore, checkpoint: Committed) -> Position:
    """Where training stood in a checkpoint. Raises CheckpointError where that cannot be read."""
    return Position.parse(store.read(checkpoint, POSITION), checkpoint.address)


def check_position(found: Position, checkpoint: Committed, ledger_hash: str, data_fingerprint: str) -> None:
    """Raises BadInput where a checkpoint belongs to another ledger or other text than this run's."""
    root = checkpoint.address.rpartition("/")[0]
    mend = f"Give the run another name or checkpoint.uri, or remove {root} to begin again."
    if found.ledger_hash != ledger_hash:
        raise BadInput(
            f"{checkpoint.address} was written under ledger {found.ledger_hash} and this run's is "
            f"{ledger_hash}: what it trains changed since (model, classification, teacher, optimizer, "
            "quantization, mixture, budget, phases, schedule or seed). "
            f"Undo that change. {mend}"
        )
    if found.data_fingerprint != data_fingerprint:
        raise BadInput(
            f"{checkpoint.address} was trained on text {found.data_fingerprint[:16]} and this run's is "
            f"{data_fingerprint[:16]}: files, weights, tokenizer or seed changed since. "
            f"Undo that change. {mend}"
        )


def load(
    store: CheckpointStore,
    checkpoint: Committed,
    position: Position,
    training: Training,
    group: dist.ProcessGroup,
) -> None:
    """Loads tensors and random state in place; every rank calls it. Raises CheckpointError."""
    _log.info("going on from %s, which %d ranks wrote", checkpoint.address, position.world_size)
    read_tensors(store.folder(checkpoint), training, group)
    dist.barrier(group)
    store.forget(checkpoint)
