"""Which source the next sequence comes from, and what share of them each source deserves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_SHARE, LARGEST_SHARE = 0.01, 0.9
"""Between these a measured share stays: a source out of use could never be found useful again."""


@dataclass(frozen=True)
class Shares:
    """Fixed shares: each sequence comes from the source that is furthest behind its share.

    Nothing is drawn at random, so after n sequences a source has had its share of n to within the number
    of sources, and the order is the same on every machine.
    """

    weights: tuple[float, ...]
    """One a source, relative to each other; a source with 0 is never read."""

    def __post_init__(self) -> None:
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ValueError(f"mixture weights {self.weights} must be at least 0, and one of them above")

    def next_source(self, had: Sequence[int]) -> int:
        """The source with the largest deficit `share * (total + 1) - had`; the first of equals.

        `had` is what each source gave since these shares began. Deficits add up to 1 and that of a source
        without weight is never above 0, so it never has the largest.
        """
        coming = sum(had) + 1
        whole = sum(self.weights)
        deficits = [weight / whole * coming - had_ for weight, had_ in zip(self.weights, had, strict=True)]
        return deficits.index(max(deficits))


def influenced(weights: Sequence[float], alignments: Sequence[float], smoothing: float) -> tuple[float, ...]:
    """The shares that follow from what each source's text was measured to do for the held-out text.

    With `s` the weights divided by their sum and `a` the alignments: `t = max(a, 0) / sum(max(a, 0))`, or
    `t = s` where no alignment is above 0; then `s + smoothing * (t - s)`; then each is multiplied by the one
    common factor for which, cut off at 0.01 and 0.9, they sum to 1. A step along a source's gradient lowers
    the held-out loss by their dot product, which is the influence of DataInf (arXiv 2310.00902, section 2)
    with the identity in the Hessian's place; as a cosine, it is not won by text whose gradient is merely
    large, such as noise.

    Args:
        weights: one a source, relative to each other. One with 0 keeps it: it takes no part in the mixture.
        alignments: one a source, in [-1, 1]; one that is not a finite number counts as 0.
        smoothing: in (0, 1], how far the shares go from old to measured.

    Returns:
        One share a source, in sum 1. With 2 to 100 sources of weight above 0, theirs are in [0.01, 0.9]; a
        single one has all.
    """
    active = [source for source, weight in enumerate(Shares(tuple(weights)).weights) if weight > 0]
    whole = sum(weights)
    scores = {
        source: min(max(alignments[source], 0.0), 1.0) if math.isfinite(alignments[source]) else 0.0
        for source in active
    }
    helped = sum(scores.values())
    shares = [0.0] * len(weights)
    for source in active:
        share = weights[source] / whole
        target = scores[source] / helped if helped > 0 else share
        shares[source] = share + smoothing * (target - share)
    if len(active) > 1:
        for source, bounded in zip(active, _bounded([shares[source] for source in active]), strict=True):
            shares[source] = bounded
    return tuple(shares)


def rewarded(rewards: Sequence[float], losses: Sequence[float], smoothing: float) -> tuple[float, ...]:
    """What each source is worth to the policy Bandit: a moving average of its loss in nats.

    `r + smoothing * (loss - r)`, and the loss itself where there is no average yet (`rewards` is empty). A
    loss that is not a finite number leaves all as they were: the model is ill, and no source to be judged.
    """
    if not all(map(math.isfinite, losses)):
        return tuple(rewards)
    before = rewards or losses
    return tuple(reward + smoothing * (loss - reward) for reward, loss in zip(before, losses, strict=True))


def explored(rewards: Sequence[float], turn: int) -> tuple[float, ...]:
    """The shares of Online Data Mixing (arXiv 2312.02406), which is EXP3 with a source's loss as its reward.

    With K sources and `e(t) = min(1 / K, sqrt(ln K / (K t)))`, source i has
    `(1 - K e(t)) * exp(e(t - 1) r_i) / sum_j exp(e(t - 1) r_j) + e(t)`, where e(0) = 1 / K: what is least
    learned is read most, and nothing less than e(t). The paper sees the loss of the sources that a step drew,
    and divides it by their shares; here each source's is measured each turn, so there is nothing to make up
    for.

    Args:
        rewards: r, K >= 2 of them.
        turn: t, from 1.

    Returns:
        One share a source, in sum 1.
    """
    count = len(rewards)
    now, before = (_exploration(count, number) for number in (turn, turn - 1))
    # Less the largest, which changes nothing: exp of a ternary model's first losses would overflow.
    scores = [math.exp(before * (reward - max(rewards))) for reward in rewards]
    return tuple((1 - count * now) * score / sum(scores) + now for score in scores)


def _exploration(count: int, turn: int) -> float:
    return min(1 / count, math.sqrt(math.log(count) / (count * turn))) if turn else 1 / count


def _bounded(shares: Sequence[float]) -> list[float]:
    """Shares in sum 1 times the factor for which, cut off at both bounds, they sum to 1, found by halving."""
    # A share of 0 grows with no factor, though it may have to: two of three, where the third is cut off.
    shares = [max(share, 1e-9) for share in shares]

    def times(factor: float) -> list[float]:
        return [min(max(share * factor, SMALLEST_SHARE), LARGEST_SHARE) for share in shares]

    low, high = 0.0, LARGEST_SHARE / min(shares)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(times(middle)) < 1 else (low, middle)
    return times(high)
