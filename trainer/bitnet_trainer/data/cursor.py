"""Where training stands in the data, as a value that fits any number of ranks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bitnet_trainer.batch import SequenceId
from bitnet_trainer.data.mixture import Shares


@dataclass(frozen=True)
class Cursor:
    """How much of each source has been consumed, by all ranks together.

    The next sequences follow from this and the weights alone, whatever the number of ranks was or will be.
    """

    consumed: tuple[int, ...]
    """Sequences taken from each source, over all epochs."""
    origin: tuple[int, ...]
    """What was consumed when the weights in effect began. Shares count from there: a source is not made to
    catch up with a share that it did not have before."""

    @classmethod
    def at_start(cls, sources: int) -> "Cursor":
        """Nothing consumed yet."""
        return cls((0,) * sources, (0,) * sources)

    @property
    def sequences(self) -> int:
        """Sequences consumed in all."""
        return sum(self.consumed)

    def rebased(self) -> "Cursor":
        """The same place in every source, where other weights begin."""
        return Cursor(self.consumed, self.consumed)

    def past(self, count: int, weights: Sequence[float]) -> "Cursor":
        """The cursor after the next `count` sequences, with `weights` as for `take`."""
        shares, had = Shares(tuple(weights)), self._had()
        for _ in range(count):
            had[shares.next_source(had)] += 1
        return self._after(had)

    def take(
        self, count: int, weights: Sequence[float], sizes: Sequence[int], seed: int | str
    ) -> tuple[tuple[SequenceId, ...], "Cursor"]:
        """The next `count` sequences of the whole run, and the cursor after them.

        `weights` are at least 0, one of them above. `sizes` are the sources' numbers of training sequences,
        each at least 1. A source that ends begins again in another order, so a corpus smaller than a batch is
        repeated within it.
        """
        shares, had = Shares(tuple(weights)), self._had()
        taken = []
        for _ in range(count):
            source = shares.next_source(had)
            epoch, place = divmod(self.origin[source] + had[source], sizes[source])
            index = shuffled(place, sizes[source], f"{seed}/{source}/{epoch}")
            taken.append(SequenceId(source, epoch, index))
            had[source] += 1
        return tuple(taken), self._after(had)

    def _had(self) -> list[int]:
        """What each source gave since the weights in effect began."""
        return [now - then for now, then in zip(self.consumed, self.origin, strict=True)]

    def _after(self, had: Sequence[int]) -> "Cursor":
        return Cursor(tuple(then + more for then, more in zip(self.origin, had, strict=True)), self.origin)


def rank_slice(batch: Sequence[SequenceId], rank: int, world: int) -> Sequence[SequenceId]:
    """The part of a global batch that one rank trains on: the rank-th of `world` equal, disjoint pieces.

    Raises ValueError where the batch cannot be divided so.
    """
    share, rest = divmod(len(batch), world)
    if rest:
        raise ValueError(f"a batch of {len(batch)} sequences cannot be divided over {world} ranks")
    return batch[rank * share : (rank + 1) * share]


def shuffled(place: int, size: int, key: str) -> int:
    """Where `place` goes in a permutation of range(size) that `key` names.

    A four-round Feistel network over the smallest even number of bits that holds `size`, walked until the
    result falls inside it (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no
    table, and unlike a random generator's shuffle it cannot change with a library's version.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(4):
            digest = hashlib.blake2b(f"{key}/{number}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        place = left << half | right
        if place < size:
            return place
