"""The data cursor: deterministic, without repeats, and the same for any number of ranks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.data import Cursor, StaticMixture
from bitnet_trainer.data.cursor import rank_slice, shuffled

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(size=st.integers(1, 400), key=st.text(max_size=5))
def test_shuffled_is_a_permutation(size, key):
    assert sorted(shuffled(place, size, key) for place in range(size)) == list(range(size))


def test_shuffled_depends_on_the_key_and_on_nothing_else():
    orders = [[shuffled(place, 50, key) for place in range(50)] for key in ("0/0/0", "0/0/1", "1/0/0")]
    assert len({tuple(order) for order in orders}) == 3
    # Written down, so that a change of the order, which would break every run under way, shows.
    assert [shuffled(place, 10, "0/0/0") for place in range(10)] == PINNED


PINNED = [2, 4, 1, 0, 8, 9, 5, 6, 7, 3]


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), count=st.integers(0, 300))
def test_every_source_keeps_to_its_share(weights, count):
    mixture = StaticMixture(tuple(weights))
    consumed = [0] * len(weights)
    for _ in range(count):
        consumed[mixture.next_source(consumed)] += 1
    for weight, had in zip(weights, consumed, strict=True):
        assert abs(had - weight / sum(weights) * count) <= len(weights)


@given(sizes=SIZES, count=st.integers(0, 200), seed=st.integers(0, 3))
def test_an_epoch_has_every_sequence_once(sizes, count, seed):
    mixture = StaticMixture((1.0,) * len(sizes))
    taken, cursor = Cursor.at_start(len(sizes)).take(count, mixture, sizes, seed)
    assert cursor.sequences == count == len(taken)
    seen = Counter(taken)
    assert all(times == 1 for times in seen.values())
    for source, (size, had) in enumerate(zip(sizes, cursor.consumed, strict=True)):
        for epoch in range(had // size):
            indices = sorted(id_.index for id_ in taken if (id_.source, id_.epoch) == (source, epoch))
            assert indices == list(range(size))


@given(sizes=SIZES, cuts=st.lists(st.integers(1, 30), max_size=6), seed=st.integers(0, 3))
def test_taking_in_parts_is_taking_at_once(sizes, cuts, seed):
    """A resume begins from the cursor alone."""
    mixture = StaticMixture(tuple(float(n + 1) for n in range(len(sizes))))
    start = Cursor.at_start(len(sizes))
    at_once, end = start.take(sum(cuts), mixture, sizes, seed)
    cursor, parts = start, []
    for cut in cuts:
        taken, cursor = Cursor(cursor.consumed).take(cut, mixture, sizes, seed)
        parts += taken
    assert tuple(parts) == at_once
    assert cursor == end


@given(worlds=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_ranks_share_a_batch_and_a_change_of_ranks_neither_repeats_nor_skips(worlds, seed):
    """Traps 8 and 9: the ranks' parts are disjoint, and together the batch that one rank would read."""
    sizes, mixture, batch = [37, 11], StaticMixture((2.0, 1.0)), 16
    expected, _ = Cursor.at_start(2).take(batch * len(worlds), mixture, sizes, seed)
    cursor, read = Cursor.at_start(2), []
    for world in worlds:
        taken, cursor = cursor.take(batch, mixture, sizes, seed)
        parts = [rank_slice(taken, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {batch // world}
        read += [id_ for part in parts for id_ in part]
    assert tuple(read) == expected
    assert len(set(read)) == len(read)


def test_a_batch_that_ranks_cannot_share_is_refused():
    taken, _ = Cursor.at_start(1).take(8, StaticMixture((1.0,)), [100], 0)
    with pytest.raises(ValueError, match="8 sequences cannot be divided over 3 ranks"):
        rank_slice(taken, 0, 3)


def test_weights_must_be_above_zero():
    with pytest.raises(ValueError, match="must all be above 0"):
        StaticMixture((1.0, 0.0))
