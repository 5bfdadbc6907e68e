"""The trained model of a run, rebuilt from its record and a checkpoint: for exports after the fact."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitnet_crds.spec import ExportFormat
from bitnet_trainer.checkpoint.local import LocalStore
from bitnet_trainer.checkpoint.store import MARKER, Committed
from bitnet_trainer.errors import BadInput, CheckpointError
from bitnet_trainer.export.stock import check_exportable
from bitnet_trainer.models.convert import ConversionReport, convert
from bitnet_trainer.optim import WeightAverage
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.record import RunRecord
from bitnet_trainer.setup import load_student

_RECORD = "run.json"


@dataclass(frozen=True)
class TrainedModel:
    """What a run's checkpoint holds, ready to be run or exported."""

    model: PreTrainedModel
    """Converted, at lambda = 1 whatever the step, on the CPU, in evaluation mode; of averaged weights where
    the run averages them."""
    tokenizer: PreTrainedTokenizerBase
    report: ConversionReport
    run: Path
    """The run's folder."""
    step: int
    """Of the checkpoint."""


def is_run(source: Path) -> bool:
    """Whether a folder is a run's, or one checkpoint of a run."""
    return (source / _RECORD).is_file() or (source / MARKER).is_file()


def load_trained(source: Path, formats: tuple[ExportFormat, ...] = ()) -> TrainedModel:
    """Loads the newest sound checkpoint of a run, or one that is named.

    The model that the run began with must still be where the run says.

    Args:
        source: a run's folder, or the folder of one checkpoint in it.
        formats: what it is to be exported as; refused before any weight is read where one cannot hold it.

    Raises:
        BadInput: it is neither, or a format cannot hold the model.
        ModelUnavailable: the model that the run began with is not there any more.
        CheckpointError: there is no checkpoint, or it is not sound.
    """
    if not is_run(source):
        raise BadInput(
            f"{source} is neither a run's folder, which holds {_RECORD}, nor one of its checkpoints, which "
            f"hold {MARKER}; name one of them"
        )
    folder = source if (source / _RECORD).is_file() else source.resolve().parents[1]
    record = RunRecord.read(folder / _RECORD)
    if record is None:
        raise BadInput(f"{folder / _RECORD} cannot be read, or is of another version; name another run")
    if not record.converted_layers:
        raise BadInput(
            f"{folder} is where a teacher was tuned, and nothing of that is quantised; name the run's own "
            "folder, or the tuned teacher in it"
        )
    checkpoint = _sound(source, folder)
    loaded = load_student(record.spec)
    check_exportable(loaded.model, record.spec.quantization, formats, loaded.tokenizer)
    report = convert(loaded.model, record.spec.quantization)
    average = None
    if record.spec.averaging is not None:
        average = WeightAverage(loaded.model, record.spec.averaging.decay)
    _read_weights(checkpoint, loaded.model, average)
    set_lambda(loaded.model, 1.0)
    loaded.model.train(False)
    return TrainedModel(loaded.model, loaded.tokenizer, report, folder, checkpoint.step)


def _sound(source: Path, folder: Path) -> Committed:
    store = LocalStore(folder / "checkpoints", keep=1)
    faults = []
    for checkpoint in store.committed():
        if source != folder and checkpoint.name != source.resolve().name:
            continue
        fault = store.verify(checkpoint)
        if fault is None:
            return checkpoint
        faults.append(f"{checkpoint.name}: {fault}")
    raise CheckpointError(
        f"{source} has no sound checkpoint ({'; '.join(faults) or 'none was committed'}); train the run, or "
        "name another checkpoint"
    )


def _read_weights(checkpoint: Committed, model: nn.Module, average: WeightAverage | None) -> None:
    state: dict[str, dict[str, Any]] = {"model": get_model_state_dict(model)}
    if average is not None:
        state["average"] = average.state_dict()
    try:
        with warnings.catch_warnings():
            # It says that it loads in a single process, which is what is wanted.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, storage_reader=FileSystemReader(checkpoint.address), no_dist=True)
    except CheckpointException as error:
        why = "; ".join(str(failure[0]) for failure in error.failures.values())
        raise CheckpointError(
            f"{checkpoint.address} cannot be loaded ({why}); it was written by another model or version"
        ) from error
    set_model_state_dict(model, state["model"])
    if average is not None:
        average.load_state_dict(state["average"])
        average.take_over()
