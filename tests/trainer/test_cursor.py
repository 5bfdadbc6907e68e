"""The data cursor: deterministic, without repeats, and the same for any number of ranks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.data import Cursor
from bitnet_trainer.data.cursor import rank_slice, shuffled

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@st.composite
def mixtures(draw: st.DrawFn, stretches: int):
    """Sizes of some sources, and weights of theirs for each stretch, some of them 0."""
    sizes = draw(SIZES)
    weight = st.one_of(st.just(0.0), st.floats(0.01, 100))
    weights = st.lists(weight, min_size=len(sizes), max_size=len(sizes)).filter(any)
    return sizes, draw(st.lists(weights, min_size=1, max_size=stretches))


def repeated(taken) -> bool:
    return len(set(taken)) < len(taken)


def in_order(taken, source):
    """What was read of one source, as the places its cursor went through."""
    return [(id_.epoch, id_.index) for id_ in taken if id_.source == source]


@given(size=st.integers(1, 400), key=st.text(max_size=5))
def test_shuffled_is_a_permutation(size, key):
    assert sorted(shuffled(place, size, key) for place in range(size)) == list(range(size))


def test_shuffled_depends_on_the_key_and_on_nothing_else():
    orders = [[shuffled(place, 50, key) for place in range(50)] for key in ("0/0/0", "0/0/1", "1/0/0")]
    assert len({tuple(order) for order in orders}) == 3
    # Written down, so that a change of the order, which would break every run under way, shows.
    assert [shuffled(place, 10, "0/0/0") for place in range(10)] == PINNED


PINNED = [2, 4, 1, 0, 8, 9, 5, 6, 7, 3]


@given(mixture=mixtures(stretches=4), count=st.integers(0, 120), seed=st.integers(0, 3))
def test_shares_hold_from_where_they_begin_and_nothing_is_caught_up(mixture, count, seed):
    """At every place of a stretch, whatever the stretches before it gave."""
    sizes, stretches = mixture
    cursor = Cursor.at_start(len(sizes))
    for weights in stretches:
        cursor = cursor.rebased()
        assert cursor == cursor.rebased()
        taken, cursor = cursor.take(count, weights, sizes, seed)
        had = [0] * len(sizes)
        for place, id_ in enumerate(taken, start=1):
            had[id_.source] += 1
            for weight, times in zip(weights, had, strict=True):
                assert abs(times - weight / sum(weights) * place) <= len(weights)
                assert weight > 0 or times == 0
        assert tuple(had) == tuple(n - o for n, o in zip(cursor.consumed, cursor.origin, strict=True))


def test_without_a_new_origin_the_first_sequences_would_make_up_for_the_old_shares():
    _, after = Cursor.at_start(2).take(40, (1.0, 0.0), (100, 100), 0)
    late, _ = after.take(20, (1.0, 1.0), (100, 100), 0)
    assert {id_.source for id_ in late} == {1}
    fresh, _ = after.rebased().take(20, (1.0, 1.0), (100, 100), 0)
    assert Counter(id_.source for id_ in fresh) == {0: 10, 1: 10}


@given(mixture=mixtures(stretches=5), counts=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_a_change_of_weights_repeats_and_skips_nothing(mixture, counts):
    """Each source is read as if it were read alone, whatever the weights were."""
    sizes, stretches = mixture
    cursor, read = Cursor.at_start(len(sizes)), []
    for weights, count in zip(stretches, counts, strict=False):
        taken, cursor = cursor.rebased().take(count, weights, sizes, 0)
        read += taken
    assert not repeated(read)
    for source, had in enumerate(cursor.consumed):
        only = [float(other == source) for other in range(len(sizes))]
        alone, _ = Cursor.at_start(len(sizes)).take(had, only, sizes, 0)
        assert in_order(read, source) == in_order(alone, source)


@given(sizes=SIZES, count=st.integers(0, 200), seed=st.integers(0, 3))
def test_an_epoch_has_every_sequence_once(sizes, count, seed):
    taken, cursor = Cursor.at_start(len(sizes)).take(count, (1.0,) * len(sizes), sizes, seed)
    assert cursor.sequences == count == len(taken)
    assert not repeated(taken)
    for source, (size, had) in enumerate(zip(sizes, cursor.consumed, strict=True)):
        for epoch in range(had // size):
            indices = sorted(id_.index for id_ in taken if (id_.source, id_.epoch) == (source, epoch))
            assert indices == list(range(size))


@given(mixture=mixtures(stretches=1), cuts=st.lists(st.integers(1, 30), max_size=6), seed=st.integers(0, 3))
def test_taking_in_parts_is_taking_at_once(mixture, cuts, seed):
    """A resume begins from the cursor and the weights alone."""
    sizes, (weights,) = mixture
    start = Cursor.at_start(len(sizes))
    at_once, end = start.take(sum(cuts), weights, sizes, seed)
    cursor, parts = start, []
    for cut in cuts:
        taken, cursor = Cursor(cursor.consumed, cursor.origin).take(cut, weights, sizes, seed)
        parts += taken
    assert tuple(parts) == at_once
    assert cursor == end


@given(worlds=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_ranks_share_a_batch_and_a_change_of_ranks_neither_repeats_nor_skips(worlds, seed):
    """Traps 8 and 9: the ranks' parts are disjoint, and together the batch that one rank would read."""
    sizes, weights, batch = [37, 11, 5], (2.0, 1.0, 0.0), 16
    expected, _ = Cursor.at_start(3).take(batch * len(worlds), weights, sizes, seed)
    cursor, read = Cursor.at_start(3), []
    for world in worlds:
        taken, cursor = cursor.take(batch, weights, sizes, seed)
        parts = [rank_slice(taken, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {batch // world}
        read += [id_ for part in parts for id_ in part]
    assert tuple(read) == expected
    assert not repeated(read)


@given(
    mixture=mixtures(stretches=6),
    worlds=st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=6, max_size=6),
    batches=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    seed=st.integers(0, 3),
)
def test_resizes_and_changes_of_shares_leave_each_source_read_once_an_epoch(mixture, worlds, batches, seed):
    """Whatever the ranks and the shares are from one segment to the next, each source is read in one order,
    without a repeat or a gap: all of an epoch before any of the next."""
    sizes, stretches = mixture
    cursor, read = Cursor.at_start(len(sizes)), []
    for weights, world, count in zip(stretches, worlds, batches, strict=False):
        cursor = cursor.rebased()
        for _ in range(count):
            # As a checkpoint has it, for processes that know nothing else.
            cursor = Cursor(cursor.consumed, cursor.origin)
            batch, cursor = cursor.take(16, weights, sizes, seed)
            parts = [rank_slice(batch, rank, world) for rank in range(world)]
            read += [id_ for part in parts for id_ in part]
    assert not repeated(read)
    for source, size in enumerate(sizes):
        had = in_order(read, source)
        assert len(had) == cursor.consumed[source]
        assert [epoch for epoch, _ in had] == [place // size for place in range(len(had))]
        for epoch in range(len(had) // size):
            assert sorted(index for of, index in had if of == epoch) == list(range(size))


def test_a_batch_that_ranks_cannot_share_is_refused():
    taken, _ = Cursor.at_start(1).take(8, (1.0,), [100], 0)
    with pytest.raises(ValueError, match="8 sequences cannot be divided over 3 ranks"):
        rank_slice(taken, 0, 3)
