"""Labelled text, for classification: each record is a sequence of its own."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bitnet_trainer.batch import IGNORED, Rows, SequenceId
from bitnet_trainer.data.corpus import MixedSources
from bitnet_trainer.data.origins import Documents, SourceText, find
from bitnet_trainer.data.records import Reading, Record, Tally
from bitnet_trainer.data.sources import (
    Heard,
    Tokenizer,
    Tokens,
    encoded,
    end_of_text,
    fingerprint,
    kept,
    nobody,
)
from bitnet_trainer.errors import DataUnavailable

_NAMED_LABELS = 20
"""So many of the known labels an error names."""


@dataclass(frozen=True)
class LabelledSource:
    """One source as sequences of S tokens with a label each."""

    name: str
    table: Tokens
    """(N, S + 2), a row a record: its tokens, padded; how many they are; the number of its label."""
    trained_on: npt.NDArray[np.int64]
    """Which rows."""
    kept_back: npt.NDArray[np.int64]
    """The others, labels in turn."""

    @property
    def training_sequences(self) -> int:
        """How many are trained on."""
        return len(self.trained_on)

    @property
    def held_out_sequences(self) -> int:
        """How many are never trained on."""
        return len(self.kept_back)

    def training(self, index: int) -> npt.NDArray[np.int64]:
        """Row (S + 2,) of training sequence `index`. Raises IndexError outside [0, training_sequences)."""
        return self._row(self.trained_on, index)

    def held_out(self, index: int) -> npt.NDArray[np.int64]:
        """Row (S + 2,) of held-out sequence `index`. Raises IndexError outside [0, held_out_sequences)."""
        return self._row(self.kept_back, index)

    def largest_token(self) -> int:
        """The largest token id, padding included."""
        return int(self.table[:, :-2].max())

    def fingerprint(self) -> str:
        """Hex SHA-256 of tokens, labels and the cut."""
        digest = hashlib.sha256(f"{self.table.shape} ".encode() + self.kept_back.tobytes())
        digest.update(np.ascontiguousarray(self.table).data)
        return digest.hexdigest()

    def _row(self, rows: npt.NDArray[np.int64], index: int) -> npt.NDArray[np.int64]:
        if not 0 <= index < len(rows):
            raise IndexError(f"source {self.name!r} has {len(rows)} such sequences, and none is {index}")
        row: npt.NDArray[np.int64] = self.table[rows[index]].astype(np.int64)
        return row


@dataclass(frozen=True)
class LabelledCorpus(MixedSources):
    """Text with a label a row, padded on the right."""

    def _fullest(self, sequence: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # Of rows without padding no mask would be made.
        sequence[-2] = max(1, len(sequence) - 3)
        return sequence

    def _rows(self, sequences: npt.NDArray[np.int64], ids: Sequence[SequenceId]) -> Rows:
        table = torch.from_numpy(sequences)
        tokens, lengths, classes = table[:, :-2], table[:, -2], table[:, -1]
        padding = torch.arange(tokens.shape[1]) >= lengths[:, None]
        return Rows(
            input_ids=tokens.contiguous(),
            labels=tokens.masked_fill(padding, IGNORED),
            attention_mask=(~padding).long(),
            classes=classes.contiguous(),
            ids=tuple(ids),
        )


def open_labelled(
    texts: Sequence[SourceText],
    tokenizer: Tokenizer,
    labels: Sequence[str],
    *,
    sequence_length: int,
    held_out: Fraction,
    seed: int,
    cache: Path,
    corrupt_share: Fraction = Fraction(0),
    heard: Heard = nobody,
) -> LabelledCorpus:
    """Reads and tokenises (or finds tokenised in `cache`) every source; while it does, `heard` is told.

    A source is a file whose records have a `text` and, as `label`, one of `labels`, or a folder of them; one
    whose text is blank is left out. A label that is not known is an error, and not a corrupt record: it would
    be all of a class that is missing. A text is cut to S tokens, and padded with the end-of-text token;
    where it ends in that itself, this counts as padding too: transformers' classifiers tell padding by its
    token alone. Raises DataUnavailable for a source that cannot be used, naming it and the mend.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    opened = [
        _open(text, tokenizer, numbers, sequence_length, held_out, cache, corrupt_share, heard)
        for text in texts
    ]
    return LabelledCorpus(
        tuple(source for source, _ in opened),
        tuple(text.weight for text in texts),
        seed,
        {source.name: reading for source, reading in opened},
    )


def _open(
    text: SourceText,
    tokenizer: Tokenizer,
    numbers: Mapping[str, int],
    sequence_length: int,
    held_out: Fraction,
    cache: Path,
    corrupt_share: Fraction,
    heard: Heard,
) -> tuple[LabelledSource, Reading]:
    documents = find(text, cache.parent)
    end = end_of_text(text.name, tokenizer)

    def rows(tally: Tally) -> Iterator[Tokens]:
        return _table_rows(text.name, documents, tokenizer, numbers, sequence_length, end, tally)

    cut = hashlib.sha256(json.dumps([sequence_length, *numbers]).encode()).hexdigest()
    content = fingerprint(documents.identity, tokenizer)
    stem = cache / f"{text.name}-labelled-{content[:16]}-{cut[:16]}"
    tokens, reading = kept(text, stem, rows, corrupt_share, heard)
    whole = tokens.reshape(-1, sequence_length + 2)
    if len(whole) < 2:
        raise DataUnavailable(
            f"source {text.name!r}: {text.origin} has one record, and one is trained on and one held out. "
            "Add records."
        )
    kept_back = _kept_back(whole[:, -1], held_out)
    return LabelledSource(
        text.name, whole, np.setdiff1d(np.arange(len(whole)), kept_back), kept_back
    ), reading


def _table_rows(
    name: str,
    documents: Documents,
    tokenizer: Tokenizer,
    numbers: Mapping[str, int],
    sequence_length: int,
    end: int,
    tally: Tally,
) -> Iterator[Tokens]:
    """A row of the table for each record."""
    for record in documents.read(tally):
        number = _class(name, record, numbers)
        pieces = [piece for piece, _ in encoded([record.text], tokenizer)]
        tokens = np.concatenate(pieces)[:sequence_length]
        while len(tokens) and tokens[-1] == end:
            tokens = tokens[:-1]
        if not record.text.strip() or not len(tokens):
            continue
        row = np.full(sequence_length + 2, end, dtype=np.uint32)
        row[: len(tokens)] = tokens
        row[-2:] = len(tokens), number
        yield row


def _class(name: str, record: Record, numbers: Mapping[str, int]) -> int:
    label = record.fields.get("label")
    if not isinstance(label, str) or label not in numbers:
        known = ", ".join(json.dumps(label, ensure_ascii=False) for label in islice(numbers, _NAMED_LABELS))
        more = len(numbers) - _NAMED_LABELS
        says = (
            f"label {json.dumps(label, ensure_ascii=False, default=str)}"
            if "label" in record.fields
            else "no `label`"
        )
        raise DataUnavailable(
            f"source {name!r}: {record.place} has {says}; known are {known}"
            f"{f' and {more} more' if more > 0 else ''}. Write records such as "
            '{"text": "Once upon a time", "label": "tale"}, or mend spec.classification.labels.'
        )
    return numbers[label]


def _kept_back(classes: Tokens, held_out: Fraction) -> npt.NDArray[np.int64]:
    """Which of N >= 2 records are held out: of each label the last ceil(held_out * n), labels in turn.

    One of each label stays to be trained on, so that a label with a single record is not held out; where that
    is so of every label, the last record is.
    """
    turns: list[tuple[int, int]] = []
    for number in np.unique(classes):
        rows = np.flatnonzero(classes == number).tolist()
        count = min(len(rows) - 1, math.ceil(held_out * len(rows)))
        turns.extend(enumerate(rows[len(rows) - count :]))
    return np.array([row for _, row in sorted(turns)] or [len(classes) - 1], dtype=np.int64)
