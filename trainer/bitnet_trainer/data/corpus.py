"""All the sources of a run together: the batch at a cursor, and the sequences held out."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.data.cursor import Cursor, rank_slice
from bitnet_trainer.data.origins import SourceText
from bitnet_trainer.data.packing import pack, sequences_for
from bitnet_trainer.data.records import Reading
from bitnet_trainer.data.sources import Heard, Kept, Tokenizer, nobody, open_source


class Sequences(Protocol):
    """A source cut into sequences, whatever a sequence has besides its tokens."""

    @property
    def name(self) -> str:
        """As the run names it."""

    @property
    def training_sequences(self) -> int:
        """How many are trained on, at least 1."""

    @property
    def held_out_sequences(self) -> int:
        """How many are never trained on, at least 1."""

    def training(self, index: int) -> npt.NDArray[np.int64]:
        """Training sequence `index`. Raises IndexError outside [0, training_sequences)."""

    def held_out(self, index: int) -> npt.NDArray[np.int64]:
        """Held-out sequence `index`. Raises IndexError outside [0, held_out_sequences)."""

    def largest_token(self) -> int:
        """The largest token id of them all."""

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that its sequences depend on."""


@dataclass(frozen=True)
class MixedSources(ABC):
    """The sources and how they are mixed, whatever their sequences are."""

    sources: tuple[Sequences, ...]
    weights: tuple[float, ...]
    """As the run has them where it begins, one a source."""
    seed: int
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """How the reading of each source went, by its name."""

    def take(
        self, cursor: Cursor, count: int, weights: Sequence[float]
    ) -> tuple[tuple[SequenceId, ...], Cursor]:
        """The next `count` sequences of the whole run, the same on every rank, and the cursor after them.

        `weights` are those in effect, since `cursor.origin`: where they change, take from `cursor.rebased()`.
        A source with weight 0 is not touched.
        """
        return cursor.take(count, weights, [source.training_sequences for source in self.sources], self.seed)

    def take_held_out(self, cursor: Cursor, count: int, weights: Sequence[float]) -> tuple[SequenceId, ...]:
        """`count` held-out sequences, mixed by weight: others as training goes on, all of them in turn."""
        sizes = [source.held_out_sequences for source in self.sources]
        return cursor.rebased().take(count, weights, sizes, f"{self.seed}/held out")[0]

    def micro_batches(self, batch: Sequence[SequenceId], rank: int, world: int, size: int) -> Iterator[Rows]:
        """One rank's part of a global batch, `size` rows each, on the CPU."""
        own = iter(rank_slice(batch, rank, world))
        while ids := tuple(islice(own, size)):
            yield self.rows(ids)

    def rows(self, ids: Sequence[SequenceId]) -> Rows:
        """These training sequences, on the CPU."""
        return self._rows(np.stack([self.sources[id_.source].training(id_.index) for id_ in ids]), ids)

    def made_up(self, count: int) -> Rows:
        """`count` rows that take as much memory as any, on the CPU: none has more tokens, and attention is
        masked in them if it is in any. They are no text, whatever their ids say."""
        row = self._fullest(self.sources[0].training(0).copy())
        return self._rows(np.repeat(row[None], count, axis=0), [SequenceId(0, 0, n) for n in range(count)])

    def held_out_rows(self, ids: Sequence[SequenceId]) -> Rows:
        """These held-out sequences, on the CPU, without ids: they would be taken for training sequences'."""
        return self._rows(np.stack([self.sources[id_.source].held_out(id_.index) for id_ in ids]), ())

    def largest_token(self) -> int:
        """The largest token id of all sources; a model must have an embedding for it."""
        return max(source.largest_token() for source in self.sources)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the tokens, the cut, the first weights and the seed: equal where the batches are."""
        digest = hashlib.sha256(f"{self.seed} {self.weights}".encode())
        for source in self.sources:
            digest.update(f"{source.name} {source.fingerprint()}".encode())
        return digest.hexdigest()

    def held_out(self, limit: int | None = None) -> Rows:
        """Rows that are never trained on, at most `limit`, the sources in turn."""
        return self.held_out_rows(self._held_out_in_turn(limit))

    def _held_out_in_turn(self, limit: int | None) -> tuple[SequenceId, ...]:
        """At most `limit`. Sources take turns, so that none is left out before another has two."""
        turns = (
            SequenceId(number, 0, index)
            for index in range(max(source.held_out_sequences for source in self.sources))
            for number, source in enumerate(self.sources)
            if index < source.held_out_sequences
        )
        return tuple(islice(turns, limit))

    @abstractmethod
    def _fullest(self, sequence: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A sequence, as a source gave it, made one of those that take the most memory; it may be changed."""

    @abstractmethod
    def _rows(self, sequences: npt.NDArray[np.int64], ids: Sequence[SequenceId]) -> Rows:
        """Rows of sequences that are stacked as their sources gave them."""


@dataclass(frozen=True)
class Corpus(MixedSources):
    """Running text, packed: every position of a row is a token."""

    end_of_text: int | None = None
    """Where documents are separate: the token that each ends in. None where a row is one text."""

    def fingerprint(self) -> str:
        """As for all sources, and of whether documents are separate: a row means something else then."""
        whole = super().fingerprint()
        if self.end_of_text is None:
            return whole
        return hashlib.sha256(f"{whole} documents end in {self.end_of_text}".encode()).hexdigest()

    def _fullest(self, sequence: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self.end_of_text is not None:
            # Of a row with one document no mask would be made.
            sequence[(len(sequence) - 1) // 2] = self.end_of_text
        return sequence

    def _rows(self, sequences: npt.NDArray[np.int64], ids: Sequence[SequenceId]) -> Rows:
        tokens = torch.from_numpy(sequences)
        return (
            Rows.of(tokens, ids)
            if self.end_of_text is None
            else Rows.of_documents(tokens, self.end_of_text, ids)
        )


def open_corpus(
    texts: Sequence[SourceText],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    held_out: Fraction,
    seed: int,
    cache: Path,
    corrupt_share: Fraction = Fraction(0),
    separate: bool = False,
    heard: Heard = nobody,
) -> Corpus:
    """Reads, tokenises (or finds tokenised in `cache`) and packs every source.

    With `separate`, no document sees another of its row. While it tokenises, `heard` is told.

    Raises DataUnavailable for a source that cannot be used, naming it and the mend.
    """

    def opened_one(text: SourceText) -> Kept:
        enough = None
        if text.sequences is not None:
            enough = sequences_for(text.sequences, held_out) * sequence_length
        return open_source(text, tokenizer, cache, corrupt_share, enough, heard)

    opened = [opened_one(text) for text in texts]
    return Corpus(
        tuple(
            pack(text.name, kept.tokens, sequence_length, held_out)
            for text, kept in zip(texts, opened, strict=True)
        ),
        tuple(text.weight for text in texts),
        seed,
        {text.name: kept.reading for text, kept in zip(texts, opened, strict=True)},
        tokenizer.eos_token_id if separate else None,
    )
