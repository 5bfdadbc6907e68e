"""What a teacher said of each sequence, kept on disk and replayed bit by bit when it comes again."""

import hashlib
import logging
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.objectives.top_k import TopK

_log = logging.getLogger(__name__)

SEQUENCES_IN_A_FOLDER = 1000
"""More in one folder make some file systems slow."""

_TENSORS = ("logits", "tokens", "log_normaliser")


@dataclass(frozen=True)
class Question:
    """All that decides what a teacher says of a sequence; an answer to one is none to another."""

    teacher: str
    """Fingerprint of its weights as it is asked, so with their precision, and of its architecture."""
    device: str
    """Type of the device that it is asked on."""
    k: int
    """How many likeliest tokens."""
    temperature: float
    """T of the normaliser."""


class LogitsCache:
    """A teacher's K likeliest tokens of each training sequence, in one file a sequence.

    Ranks share the folder and need no lock: a file appears whole or not at all, and two that are written of
    one sequence are equally good. A sequence is the same in every epoch. A file takes 8 bytes x K a token, or
    6 where the logits have 16 bits.
    """

    def __init__(self, folder: Path, data: str) -> None:
        """
        Args:
            folder: of the run; made where it is missing.
            data: fingerprint of the tokens and of how they are cut into sequences; what is kept for other
                data, or by another version of torch, is not looked at.
        """
        self._folder = folder
        self._data = data
        self._writable = True
        self._damage_said = False

    def top_k(self, rows: Rows, question: Question, compute: Callable[[], TopK]) -> TopK:
        """What `compute` said of these rows (B, S) the first time, on the rows' device.

        `compute` is called where some row is not kept. Then that row is; for the others stands what is kept
        of them, so that a replay of the whole is equal bit by bit. Of padding nothing is kept: it repeats the
        row's last token. Tokens come back as int64.

        Args:
            rows: of training text, with ids.
            question: what `compute` answers.
            compute: gives the K likeliest tokens of all the rows.
        """
        folder = self._folder / self._name(question)
        width = rows.input_ids.shape[1]
        # Told apart, since to look at the mask the host has to wait for the device. Of a row that is all
        # padding one position is kept, to be repeated.
        lengths = (
            [width] * len(rows.ids)
            if rows.attention_mask is None
            else rows.tokens.sum(1).clamp(min=1).tolist()
        )
        files = [_file(folder, id_) for id_ in rows.ids]
        kept = [self._read(file, length) for file, length in zip(files, lengths, strict=True)]
        if None in kept:
            computed = [tensor.cpu() for tensor in compute()]
            for row, length in enumerate(lengths):
                if kept[row] is None:
                    kept[row] = one = TopK(*(tensor[row, :length] for tensor in computed))
                    self._write(files[row], one)
        return _together([one for one in kept if one is not None], width, rows.input_ids.device)

    def _name(self, question: Question) -> str:
        decisive = repr((question, self._data, torch.__version__))
        return hashlib.sha256(decisive.encode()).hexdigest()[:32]

    def _read(self, file: Path, length: int) -> TopK | None:
        try:
            tensors = load(file.read_bytes())
            top = TopK(*(tensors[name] for name in _TENSORS))
            sound = top.tokens.shape[0] == length and _checksum(top) == tensors["checksum"].item()
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError):
            sound = False
        if sound:
            return top._replace(tokens=top.tokens.long())
        if not self._damage_said:
            self._damage_said = True
            _log.warning(
                "%s, which keeps the teacher's logits of a sequence, is damaged; the teacher is asked again "
                "and the file replaced, and so with any other like it",
                file,
            )
        return None

    def _write(self, file: Path, top: TopK) -> None:
        if not self._writable:
            return
        narrow = top._replace(tokens=top.tokens.int())
        tensors = {name: tensor.contiguous() for name, tensor in zip(_TENSORS, narrow, strict=True)}
        tensors["checksum"] = torch.tensor([_checksum(narrow)])
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(save(tensors))
                partial.replace(file)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._writable = False
            _log.warning(
                "THE TEACHER'S LOGITS ARE NO LONGER KEPT: %s cannot be written (%s). Training goes on and is "
                "right: the teacher is asked for each sequence that is not kept there yet, which takes "
                "longer. Make room; from the next start on they are kept again.",
                file,
                error.strerror or error,
            )


def fingerprint(model: torch.nn.Module, description: str) -> str:
    """Hex SHA-256 of a model's parameters and buffers, on the CPU, and of what else describes it."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _file(folder: Path, id_: SequenceId) -> Path:
    shard = id_.index // SEQUENCES_IN_A_FOLDER
    return folder / str(id_.source) / str(shard) / f"{id_.index}.safetensors"


def _checksum(top: TopK) -> int:
    """A file may have its length and hold zeros, where a machine lost its power."""
    checksum = 0
    for tensor in top:
        checksum = zlib.crc32(_bytes(tensor), checksum)
    return checksum


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _together(rows: Sequence[TopK], width: int, device: torch.device) -> TopK:
    """One of shape (B, S) on a device from B of 1 to S positions on the CPU, the last repeated as padding."""

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        out = torch.stack([tensor[torch.arange(width).clamp(max=len(tensor) - 1)] for tensor in tensors])
        if device.type != "cuda":
            return out.to(device)
        # From memory that is not pinned the host would wait for all kernels before the copy.
        return out.pin_memory().to(device, non_blocking=True)

    return TopK(*(stacked(tensors) for tensors in zip(*rows, strict=True)))
