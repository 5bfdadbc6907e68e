"""What a checkpoint holds: weights, optimiser, random number generators, and where training stands."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bitnet_trainer.errors import CheckpointError

_POSITION = "position.json"


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

    def __post_init__(self) -> None:
        if not len(self.consumed) == len(self.origin) == len(self.mixture):
            raise ValueError(
                f"consumed {self.consumed}, origin {self.origin} and mixture {self.mixture} must have one "
                "number a source each"
            )

    def write(self, folder: Path) -> None:
        """Writes it as JSON into a checkpoint's folder. Raises CheckpointError."""
        try:
            (folder / _POSITION).write_text(json.dumps(asdict(self), indent=1))
        except OSError as error:
            raise _cannot_write(folder, error.strerror or str(error)) from error

    @classmethod
    def read(cls, folder: Path) -> "Position":
        """Reads it back. Raises CheckpointError where it is not there or not whole."""
        path = folder / _POSITION
        try:
            return _READER.validate_json(path.read_bytes(), strict=True)
        except (OSError, ValidationError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({_why(error)}). Remove {folder} to go on from an older checkpoint."
            ) from error


_READER = TypeAdapter(Position)


def write_tensors(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup
) -> None:
    """Writes this rank's part of model, optimiser and random state into `folder`; every rank calls it.

    `group` is a process group for CPU tensors. Raises CheckpointError.
    """
    try:
        save(
            _tensors(model, optimizer, _random_state(group)),
            storage_writer=FileSystemWriter(folder, sync_files=True),
            process_group=group,
        )
    except CheckpointException as error:
        raise _cannot_write(folder, _causes(error)) from error


def read_tensors(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: dist.ProcessGroup,
) -> None:
    """Loads what `write_tensors` wrote, in place; every rank calls it, and ranks or device may have changed.

    A rank or a device that was not there when it was written keeps its own random state. Raises
    CheckpointError.
    """
    reader = FileSystemReader(folder)
    try:
        state = _tensors(model, optimizer, _written(reader.read_metadata(), _random_state(group)))
        load(state, storage_reader=reader, process_group=group)
    except CheckpointException as error:
        raise _cannot_load(folder, _causes(error)) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise _cannot_load(folder, f".metadata: {error}") from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for name, value in state["random"].items():
        if name.startswith("cpu"):
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value)


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, random_state: dict[str, torch.Tensor]
) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "random": random_state}


def _random_state(group: dist.ProcessGroup) -> dict[str, torch.Tensor]:
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


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors()
    )


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
    return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
