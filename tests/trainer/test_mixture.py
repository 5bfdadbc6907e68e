"""Shares of the sources: which is next, and what measured alignments make of them."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.data import Shares, explored, influenced, rewarded

WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=64).filter(any)
ALIGNMENT = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 5e-324, math.nan, math.inf, -math.inf]))


@pytest.mark.parametrize("weights", [(), (0.0, 0.0), (1.0, -0.1), (1.0, math.nan), (1.0, math.inf)])
def test_weights_that_make_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="must be at least 0, and one of them above"):
        Shares(weights)


@given(weights=WEIGHTS, data=st.data(), smoothing=st.floats(1e-3, 1))
def test_influenced_shares_sum_to_1_within_their_bounds(weights, data, smoothing):
    alignments = data.draw(st.lists(ALIGNMENT, min_size=len(weights), max_size=len(weights)))
    shares = influenced(weights, alignments, smoothing)
    active = [share for share, weight in zip(shares, weights, strict=True) if weight > 0]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert all(share == 0 for share, weight in zip(shares, weights, strict=True) if weight == 0)
    assert len(active) == 1 or all(0.01 <= share <= 0.9 for share in active)


def twin(weights, alignments, smoothing):
    """By hand, for shares that stay within their bounds."""
    before = [weight / sum(weights) for weight in weights]
    helpful = [max(alignment, 0.0) for alignment in alignments]
    after = [score / sum(helpful) for score in helpful]
    return [(1 - smoothing) * old + smoothing * new for old, new in zip(before, after, strict=True)]


@given(
    weights=st.lists(st.floats(1, 3), min_size=2, max_size=4),
    data=st.data(),
    smoothing=st.floats(0.01, 0.5),
)
def test_shares_go_a_part_of_the_way_to_those_of_the_alignments(weights, data, smoothing):
    alignments = data.draw(
        st.lists(st.floats(-1, 1), min_size=len(weights), max_size=len(weights)).filter(
            lambda drawn: max(drawn) > 1e-3
        )
    )
    expected = twin(weights, alignments, smoothing)
    if max(expected) <= 0.9:
        assert influenced(weights, alignments, smoothing) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alignments", [(-0.5, -0.1, 0.0), (math.nan,) * 3])
def test_where_nothing_helps_the_shares_stay(alignments):
    assert influenced((0.2, 0.5, 0.3), alignments, 0.5) == pytest.approx((0.2, 0.5, 0.3), abs=1e-15)


def test_what_is_cut_off_is_divided_in_proportion():
    shares = influenced((1.0, 1.0, 2.0), (1.0, 0.0, 0.0), 1.0)
    assert shares == pytest.approx((0.9, 0.05, 0.05))
    # 0.96, 0.01 and 0.03 before: the two that may grow share what the first may not have, as 1 to 3.
    shares = influenced((0.96, 0.01, 0.03), (-1.0, -1.0, -1.0), 1.0)
    assert shares == pytest.approx((0.9, 0.025, 0.075))


def test_a_source_that_helps_again_comes_back():
    weights = (1.0, 1.0)
    for _ in range(50):
        weights = influenced(weights, (1.0, -1.0), 0.3)
    assert weights == pytest.approx((0.9, 0.1))
    for _ in range(50):
        weights = influenced(weights, (-1.0, 1.0), 0.3)
    assert weights == pytest.approx((0.1, 0.9))


def test_a_source_without_weight_gets_none_whatever_it_would_do():
    assert influenced((3.0, 0.0, 1.0), (0.2, 1.0, 0.2), 0.5)[1] == 0
    assert influenced((0.0, 5.0), (1.0, -1.0), 0.5) == (0.0, 1.0)


LOSSES = st.lists(st.floats(0, 1e9), min_size=2, max_size=64)


@given(losses=LOSSES, turn=st.integers(1, 10**6))
def test_explored_shares_sum_to_1_and_leave_something_for_each(losses, turn):
    shares, count = explored(losses, turn), len(losses)
    least = min(1 / count, math.sqrt(math.log(count) / (count * turn)))
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert min(shares) >= least * (1 - 1e-12) > 0
    order = sorted(range(count), key=lambda source: losses[source])
    assert all(shares[a] <= shares[b] + 1e-12 for a, b in itertools.pairwise(order))


def test_explored_shares_are_exp3s():
    """Worked out by hand for three sources at the fifth turn."""
    now, before = math.sqrt(math.log(3) / 15), math.sqrt(math.log(3) / 12)
    scores = [math.exp(before * loss) for loss in (2.0, 3.0, 5.0)]
    expected = [(1 - 3 * now) * score / sum(scores) + now for score in scores]
    assert explored((2.0, 3.0, 5.0), 5) == pytest.approx(expected)
    assert explored((2.0, 3.0, 5.0), 1) == pytest.approx((1 / 3,) * 3), "nothing is known yet"


def test_rewards_are_an_average_that_begins_with_the_first_loss():
    rewards = rewarded((), (4.0, 2.0), 0.25)
    assert rewards == (4.0, 2.0)
    assert rewarded(rewards, (8.0, 2.0), 0.25) == (5.0, 2.0)
    assert rewarded(rewards, (math.nan, 1.0), 0.25) == rewards
    assert rewarded((), (math.inf, 1.0), 0.25) == ()
