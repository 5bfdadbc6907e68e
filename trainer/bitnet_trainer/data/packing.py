"""A stream of tokens cut into sequences of equal length, the tail of them held out from training."""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bitnet_trainer.data.sources import Tokens
from bitnet_trainer.errors import DataUnavailable

_TOKENS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class PackedSource:
    """One source as sequences of S tokens; documents are divided by the end-of-text token inside them."""

    name: str
    tokens: Tokens
    """The whole stream, (N,)."""
    sequence_length: int
    """S."""
    training_sequences: int
    """How many are trained on: those at the head of the stream."""
    held_out_sequences: int
    """How many are never trained on: those at its tail. A last piece shorter than S is left out."""

    def training(self, index: int) -> npt.NDArray[np.int64]:
        """Training sequence `index`, (S,). Raises IndexError outside [0, training_sequences)."""
        if not 0 <= index < self.training_sequences:
            raise IndexError(f"source {self.name!r} has no training sequence {index}")
        return self._cut(index)

    def held_out(self, index: int) -> npt.NDArray[np.int64]:
        """Held-out sequence `index`, (S,). Raises IndexError outside [0, held_out_sequences)."""
        if not 0 <= index < self.held_out_sequences:
            raise IndexError(f"source {self.name!r} has no held-out sequence {index}")
        return self._cut(self.training_sequences + index)

    def largest_token(self) -> int:
        """The largest token id of the whole stream; read in pieces, to bound the memory it takes."""
        pieces = range(0, len(self.tokens), _TOKENS_AT_ONCE)
        return max(int(self.tokens[begin : begin + _TOKENS_AT_ONCE].max()) for begin in pieces)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the tokens and the cut."""
        digest = hashlib.sha256(f"{self.sequence_length} {self.training_sequences} ".encode())
        digest.update(np.ascontiguousarray(self.tokens).data)
        return digest.hexdigest()

    def _cut(self, index: int) -> npt.NDArray[np.int64]:
        begin = index * self.sequence_length
        return self.tokens[begin : begin + self.sequence_length].astype(np.int64)


def sequences_for(trained: int, held_out: Fraction) -> int:
    """The fewest sequences of which `pack` leaves so many to train on."""
    trained = max(1, trained)
    return max(trained + 1, math.ceil(trained / (1 - held_out)))


def pack(name: str, tokens: Tokens, sequence_length: int, held_out: Fraction) -> PackedSource:
    """Cuts tokens (N,) into N // S sequences and holds out the last ceil(held_out * (N // S)) of them.

    At least one sequence is on each side. Raises DataUnavailable for a source too short for that.
    """
    sequences = len(tokens) // sequence_length
    if sequences < 2:
        raise DataUnavailable(
            f"source {name!r} has {len(tokens):,} tokens, and one sequence to train on and one to hold "
            f"out take {2 * sequence_length:,}. Add text, or lower data.sequenceLength ({sequence_length})."
        )
    kept_back = min(sequences - 1, max(1, math.ceil(held_out * sequences)))
    return PackedSource(name, tokens, sequence_length, sequences - kept_back, kept_back)
