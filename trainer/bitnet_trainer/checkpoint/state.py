"""What a checkpoint holds: weights, optimiser, random number generators, and where training stands."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bitnet_trainer.errors import CheckpointError

_POSITION = "position.json"


@dataclass(frozen=True)
class Position:
    """Where training stands, less the tensors. Learning rate and lambda follow from `step` and the ledger."""

    step: int
    """Optimiser steps completed, skipped ones included."""
    consumed: tuple[int, ...]
    """Sequences taken from each source: the data cursor."""
    skipped_steps: int
    """Steps left out because loss or gradient was not finite."""
    ledger_hash: str
    """`Plan.ledger_hash` of the run that wrote it."""
    data_fingerprint: str
    """`Corpus.fingerprint()` of the text it was trained on."""
    world_size: int
    """Ranks that wrote it."""

    def write(self, folder: Path) -> None:
        """Writes it as JSON into a checkpoint's folder."""
        (folder / _POSITION).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Position":
        """Reads it back. Raises CheckpointError where it is not there or not whole."""
        try:
            fields = json.loads((folder / _POSITION).read_text())
            return cls(**{**fields, "consumed": tuple(fields["consumed"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / _POSITION} cannot be read ({error}). "
                f"Remove {folder} to go on from an older checkpoint."
            ) from error


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
        raise CheckpointError(
            f"checkpoint.uri: {folder} could not be written ({_causes(error)}). "
            "Free some space, or give another folder."
        ) from error


def read_tensors(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    group: dist.ProcessGroup,
    written_by: int,
) -> None:
    """Loads what `write_tensors` wrote, in place; every rank calls it, and their number may have changed.

    A rank that did not exist among the `written_by` ranks that wrote it keeps its own random state.
    """
    rank = dist.get_rank(group)
    random_state = _random_state(group) if rank < written_by else {}
    state = _tensors(model, optimizer, random_state)
    try:
        load(
            state,
            storage_reader=FileSystemReader(folder),
            process_group=group,
        )
    except CheckpointException as error:
        raise CheckpointError(
            f"{folder} cannot be loaded ({_causes(error)}). It was written by another model or version; "
            "give the run another checkpoint.uri, or remove that folder."
        ) from error
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


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
