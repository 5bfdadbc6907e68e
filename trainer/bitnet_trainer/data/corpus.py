"""All the sources of a run together: the batch at a cursor, and the sequences held out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bitnet_trainer.data.cursor import Cursor, SequenceId, rank_slice
from bitnet_trainer.data.mixture import StaticMixture
from bitnet_trainer.data.packing import PackedSource, pack
from bitnet_trainer.data.sources import Tokenizer, open_source


@dataclass(frozen=True)
class SourceText:
    """One source as the run asks for it."""

    name: str
    path: Path
    weight: float


@dataclass(frozen=True)
class Corpus:
    """The packed sources and how they are mixed."""

    sources: tuple[PackedSource, ...]
    mixture: StaticMixture
    seed: int

    def take(self, cursor: Cursor, count: int) -> tuple[tuple[SequenceId, ...], Cursor]:
        """The next `count` sequences of the whole run, the same on every rank, and the cursor after them."""
        sizes = [source.training_sequences for source in self.sources]
        return cursor.take(count, self.mixture, sizes, self.seed)

    def micro_batches(
        self, batch: Sequence[SequenceId], rank: int, world: int, size: int
    ) -> Iterator[torch.Tensor]:
        """One rank's part of a global batch as int64 token ids, (B, S) each with B = `size`, on the CPU."""
        own = iter(rank_slice(batch, rank, world))
        while ids := tuple(islice(own, size)):
            rows = [self.sources[id_.source].training(id_.index) for id_ in ids]
            yield torch.from_numpy(np.stack(rows))

    def held_out(self, limit: int | None = None) -> torch.Tensor:
        """Token ids that are never trained on, (N, S) int64, N at most `limit`.

        Sources take turns, so that a limit leaves none of them out before another has two.
        """
        turns = (
            (index, number)
            for index in range(max(source.held_out_sequences for source in self.sources))
            for number, source in enumerate(self.sources)
            if index < source.held_out_sequences
        )
        rows = [self.sources[number].held_out(index) for index, number in islice(turns, limit)]
        return torch.from_numpy(np.stack(rows))

    def largest_token(self) -> int:
        """The largest token id of all sources; a model must have an embedding for it."""
        return max(source.largest_token() for source in self.sources)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the tokens, the cut, the weights and the seed: equal where the batches are."""
        digest = hashlib.sha256(f"{self.seed} {self.mixture.weights}".encode())
        for source in self.sources:
            digest.update(f"{source.name} {source.fingerprint()}".encode())
        return digest.hexdigest()


def open_corpus(
    texts: Sequence[SourceText],
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    held_out: Fraction,
    seed: int,
    cache: Path,
) -> Corpus:
    """Reads, tokenises (or finds tokenised in `cache`) and packs every source.

    Raises DataUnavailable for a source that cannot be used, naming it and the mend.
    """
    packed = tuple(
        pack(text.name, open_source(text.name, text.path, tokenizer, cache), sequence_length, held_out)
        for text in texts
    )
    return Corpus(packed, StaticMixture(tuple(text.weight for text in texts)), seed)
