"""Finding the newest checkpoint that may be gone on from, and going on from it."""

import logging
from collections.abc import Iterable, Sequence

import torch.distributed as dist

from bitnet_crds.adjustments import Rollback
from bitnet_trainer.checkpoint.state import POSITION, Position, Training, read_tensors
from bitnet_trainer.checkpoint.store import CheckpointStore, Committed
from bitnet_trainer.errors import BadInput, CheckpointError

_log = logging.getLogger(__name__)


def newest_sound(store: CheckpointStore, rollbacks: Sequence[Rollback] = ()) -> Committed | None:
    """The newest committed checkpoint whose files are as written, and that none of the run's `rollbacks` left
    behind; None where the run begins at its first step, none ever committed or a roll-back asking for that.

    Newer ones are set aside, and removed when the next one is committed. Raises CheckpointError where there
    should be one and none is: starting over would throw the run away.
    """
    faults: dict[Committed, str] = {}
    left_behind: list[Committed] = []
    for checkpoint in store.committed():
        fault = store.verify(checkpoint)
        if fault is not None:
            _log.warning("checkpoint %s is damaged and is passed over: %s", checkpoint.address, fault)
            faults[checkpoint] = fault
        elif rollbacks and read_position(store, checkpoint).is_left_behind(rollbacks):
            _log.info("checkpoint %s is from before a roll-back, and is left behind", checkpoint.address)
            left_behind.append(checkpoint)
        else:
            _set_aside(store, (*faults, *left_behind))
            return checkpoint
    if faults:
        each = "; ".join(f"{damaged.name}: {fault}" for damaged, fault in faults.items())
        raise CheckpointError(
            f"no checkpoint in {store.address} is sound ({each}). Restore one, or remove them all "
            "to begin this run again from its first step."
        )
    if rollbacks and all(rollback.checkpoint_step for rollback in rollbacks):
        back = min(rollback.checkpoint_step for rollback in rollbacks)
        raise CheckpointError(
            f"the run went back to its checkpoint of step {back}, and {store.address} holds neither that one "
            "nor one written since. Restore it, or give the run another name to begin again."
        )
    _set_aside(store, left_behind)
    return None


def _set_aside(store: CheckpointStore, checkpoints: Iterable[Committed]) -> None:
    for checkpoint in checkpoints:
        store.set_aside(checkpoint)


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
