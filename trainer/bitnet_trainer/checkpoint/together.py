"""What ranks do together so that each of them knows how it went on all: no rank waits for one that failed."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from bitnet_trainer.errors import CheckpointError

T = TypeVar("T")


@dataclass(frozen=True)
class _Fault:
    words: str
    foreseen: bool
    """Whether the place of the checkpoints is at fault, and not this program."""
    transient: bool = False


def on_all(group: dist.ProcessGroup, action: Callable[[], T]) -> list[T]:
    """Runs `action` on every rank of `group`; what each returned, by rank.

    Where it raised on some, this raises on all: an error that nobody foresaw before a CheckpointError, the
    lowest rank's first. The rank that had it raises it as it was, the others in its words.
    """
    mine: Exception | None = None
    told: tuple[T | None, _Fault | None]
    try:
        told = action(), None
    except CheckpointError as error:
        mine, told = error, (None, _Fault(str(error), foreseen=True, transient=error.transient))
    except Exception as error:  # noqa: BLE001  # raised below, on every rank
        mine, told = error, (None, _Fault("".join(traceback.format_exception(error)), foreseen=False))
    heard: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(heard, told, group=group)
    faults = {rank: fault for rank, (_, fault) in enumerate(heard) if fault is not None}
    if not faults:
        return [result for result, _ in heard]
    rank, fault = min(faults.items(), key=lambda item: (item[1].foreseen, item[0]))
    if mine is not None and rank == dist.get_rank(group):
        raise mine
    if fault.foreseen:
        raise CheckpointError(fault.words, transient=fault.transient)
    raise RuntimeError(f"rank {rank} failed while it wrote a checkpoint:\n{fault.words}")
