"""What a checkpoint holds: weights, optimiser, random number generators, and where training stands."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from bitnet_crds.adjustments import Rollback
from bitnet_trainer.errors import CheckpointError

POSITION = "position.json"


@dataclass(frozen=True)
class Position:
    """Where training stands, less the tensors. Learning rate and lambda follow from `step` and the ledger."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: int
    """Optimiser steps completed, skipped ones included."""
    consumed: tuple[int, ...]
    """Sequences taken from each source: the data cursor."""
    origin: tuple[int, ...]
    """What was consumed of each when the weights in effect began: the data cursor."""
    mixture: tuple[float, ...]
    """The weights in effect, one a source."""
    skipped_steps: int
    """Steps left out because loss or gradient was not finite."""
    skipped_in_row: int
    """How many of them are the last ones."""
    ledger_hash: str
    """`Plan.ledger_hash` of the run that wrote it."""
    data_fingerprint: str
    """`Corpus.fingerprint()` of the text it was trained on."""
    world_size: int
    """Ranks that wrote it."""
    balance: Mapping[str, float] = field(default_factory=dict)
    """Measured factors of objectives, by name."""
    rewards: tuple[float, ...] = ()
    """What the policy Bandit knows of each source; none before it first measured."""
    rollbacks: int = 0
    """How many of the run's roll-backs it was written after."""

    def __post_init__(self) -> None:
        if not len(self.consumed) == len(self.origin) == len(self.mixture):
            raise ValueError(
                f"consumed {self.consumed}, origin {self.origin} and mixture {self.mixture} must have one "
                "number a source each"
            )

    def is_left_behind(self, rollbacks: Sequence[Rollback]) -> bool:
        """Whether one of the run's `rollbacks`, oldest first, went back to before it since it was written."""
        return any(self.step > rollback.checkpoint_step for rollback in rollbacks[self.rollbacks :])

    def write(self, folder: Path) -> None:
        """Writes it as JSON into a checkpoint's folder. Raises CheckpointError."""
        try:
            (folder / POSITION).write_text(json.dumps(asdict(self), indent=1))
        except OSError as error:
            raise _cannot_write(folder, error.strerror or str(error)) from error

    @classmethod
    def parse(cls, content: bytes, address: str) -> "Position":
        """Reads it back from a checkpoint at `address`. Raises CheckpointError where it is not whole."""
        try:
            return _READER.validate_json(content, strict=True)
        except ValidationError as error:
            raise CheckpointError(
                f"{address}/{POSITION} cannot be read ({_why(error)}). "
                f"Remove {address} to go on from an older checkpoint."
            ) from error


_READER = TypeAdapter(Position)

_TORCHS_WRITER = "inline_container.cc"
"""Stands in the RuntimeError by which torch's zip writer hides what the system said, as of a full disk."""


@dataclass(frozen=True)
class Training:
    """The parts of a run whose tensors a checkpoint holds."""

    model: nn.Module
    """Not wrapped in DDP; its parameters may be DTensors."""
    optimizer: torch.optim.Optimizer
    more: Mapping[str, Stateful] = field(default_factory=dict)
    """Further parts with tensors of their own, by the name that they have in a checkpoint."""

    def tensors(self, random_state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The tensors that training changes, by part; they are not copied."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        parts = {name: part.state_dict() for name, part in self.more.items()}
        return {"model": weights, "optimizer": moments, "random": dict(random_state), **parts}

    def full_weights(self, copied: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """The model's whole weights on the CPU, on the first rank, as they are now; every rank calls it.

        `copied` holds them already where they are not sharded.
        """
        if not any(isinstance(weight, DTensor) for weight in copied.values()):
            return copied
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Mapping[str, Any] = get_model_state_dict(self.model, options=whole)
        return weights


class Copier:
    """Copies tensors to the CPU, into memory of its own that it uses again: pinned for those of a GPU."""

    def __init__(self, training: Training) -> None:
        self._gpu = any(weight.is_cuda for weight in training.model.parameters())
        # DefaultStager around it can be used once only in torch 2.11 (pytorch issue 183413).
        self._stager = StateDictStager(pin_memory=self._gpu, share_memory=False)

    def copy(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same structure with every tensor, and the shards of every DTensor, as they are now."""
        copied: dict[str, Any] = self._stager.stage(tensors, non_blocking=self._gpu)
        if self._gpu:
            torch.cuda.current_stream().synchronize()
        return copied

    def close(self) -> None:
        """Gives the memory back."""
        self._stager.close()  # type: ignore[no-untyped-call]


def write_tensors(folder: Path, tensors: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Writes this rank's part of what `Training.tensors` gave into `folder`; every rank calls it.

    `group` is a process group for CPU tensors. Raises CheckpointError.
    """
    # Nothing is to be copied ahead from a device: another thread's stream would be waited for.
    writer = FileSystemWriter(folder, sync_files=True, per_thread_copy_ahead=0)
    try:
        save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        _raise_unforeseen(error)
        raise _cannot_write(folder, _causes(error)) from error


def read_tensors(folder: Path, training: Training, group: dist.ProcessGroup) -> None:
    """Loads what `write_tensors` wrote, in place; every rank calls it, and ranks or device may have changed.

    A rank or a device that was not there when it was written keeps its own random state. Raises
    CheckpointError.
    """
    reader = FileSystemReader(folder)
    try:
        state = training.tensors(_written(reader.read_metadata(), random_state(group)))
        load(state, storage_reader=reader, process_group=group)
    except CheckpointException as error:
        raise _cannot_load(folder, _causes(error)) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise _cannot_load(folder, f".metadata: {error}") from error
    set_state_dict(
        training.model,
        training.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    for name, part in training.more.items():
        part.load_state_dict(state[name])
    for name, value in state["random"].items():
        if name.startswith("cpu"):
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value)


def random_state(group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
    """Torch's generators. Nothing in training draws from Python's or NumPy's."""
    rank = dist.get_rank(group)
    state = {f"cpu-{rank}": torch.get_rng_state()}
    if torch.cuda.is_available():
        state[f"cuda-{rank}"] = torch.cuda.get_rng_state()
    return state


def _written(metadata: Metadata, random_state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of this rank's random states that the checkpoint holds, in the same size."""
    held = {
        key: entry.size
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    return {name: value for name, value in random_state.items() if held.get(f"random.{name}") == value.size()}


def _why(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors()
    )


def _raise_unforeseen(error: CheckpointException) -> None:
    """Raises RuntimeError where a rank failed otherwise than by the place that it wrote to."""
    for rank, (failure, stack) in sorted(error.failures.items()):
        if not isinstance(failure, OSError) and _TORCHS_WRITER not in str(failure):
            where = "".join(stack.format())
            raise RuntimeError(
                f"rank {rank} failed while it wrote a checkpoint: {failure!r}\n{where}"
            ) from error


def _cannot_write(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint.uri: {folder} could not be written ({why}). Free some space, or give another folder."
    )


def _cannot_load(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be loaded ({why}). It was written by another model or version; "
        "give the run another checkpoint.uri, or remove that folder."
    )


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {_words(failure[0])}" for rank, failure in sorted(error.failures.items()))


def _words(failure: BaseException) -> str:
    if _TORCHS_WRITER in str(failure):
        return f"not all of it was taken, as by a full disk: {str(failure).splitlines()[0]}"
    return str(failure)
