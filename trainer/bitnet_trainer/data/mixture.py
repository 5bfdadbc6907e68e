"""Which source the next sequence comes from."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StaticMixture:
    """Fixed shares: each sequence comes from the source that is furthest behind its share.

    Nothing is drawn at random, so after n sequences a source has had its share of n to within the number
    of sources, and the order is the same on every machine.
    """

    weights: tuple[float, ...]
    """One a source, above 0, relative to each other."""

    def __post_init__(self) -> None:
        if not self.weights or any(weight <= 0 for weight in self.weights):
            raise ValueError(f"mixture weights {self.weights} must all be above 0")

    def next_source(self, consumed: Sequence[int]) -> int:
        """The source with the largest deficit `share * (total + 1) - consumed`; the first of equals."""
        coming = sum(consumed) + 1
        whole = sum(self.weights)
        deficits = [weight / whole * coming - had for weight, had in zip(self.weights, consumed, strict=True)]
        return deficits.index(max(deficits))
