"""Rows made ahead: the same as without, whatever was guessed; errors as themselves; no thread left behind."""

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_crds import Adjustments, Rollback, plan
from bitnet_trainer.data import Corpus, Cursor, Prefetch, Wanted
from bitnet_trainer.data.packing import pack
from small_specs import spec_of

SIZES = [(4, (2.0, 1.0)), (4, (2.0, 1.0)), (2, (2.0, 1.0)), (2, (1.0, 3.0)), (1, (1.0, 3.0))]
"""Micro batch and shares, step by step."""


@pytest.fixture
def corpus():
    return made_corpus()


def made_corpus():
    tokens = np.arange(400, dtype=np.uint32)
    return Corpus(tuple(pack(name, tokens, 8, Fraction(1, 5)) for name in ("a", "b")), (2.0, 1.0), 0)


@pytest.fixture
def prefetch(corpus):
    made = Prefetch(corpus, 8, rank=1, world=2)
    yield made
    made.close()


def test_the_order_is_that_of_rows_made_when_they_are_wanted(corpus, prefetch):
    """Steps 3 and 5 want something else than was guessed: another micro batch, other shares."""
    cursor = twin = Cursor.at_start(2)
    for size, shares in SIZES:
        batch, twin = corpus.take(twin, 8, shares)
        rows = prefetch.take(Wanted(cursor, shares, size))
        expected = list(corpus.micro_batches(batch, 1, 2, size))
        assert [part.ids for part in rows.micro_batches] == [part.ids for part in expected]
        for part, other in zip(rows.micro_batches, expected, strict=True):
            assert torch.equal(part.input_ids, other.input_ids)
        assert rows.after == twin
        cursor = rows.after
        prefetch.ahead(Wanted(cursor, shares, size))


def test_a_run_that_goes_on_takes_the_rows_that_were_made_ahead_and_lost(corpus, prefetch):
    """What is ahead is not consumed: the cursor says so, and it alone is in a checkpoint."""
    wanted = Wanted(Cursor.at_start(2), (1.0, 1.0), 4)
    first = prefetch.take(wanted)
    prefetch.ahead(Wanted(first.after, (1.0, 1.0), 4))
    again = Prefetch(corpus, 8, rank=1, world=2)
    lost = prefetch.take(Wanted(first.after, (1.0, 1.0), 4))
    found = again.take(Wanted(first.after, (1.0, 1.0), 4))
    again.close()
    assert [part.ids for part in lost.micro_batches] == [part.ids for part in found.micro_batches]


@given(
    windows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 6)), max_size=4),
    stops=st.lists(st.integers(0, 14), max_size=2),
)
def test_each_step_trains_on_the_batch_that_the_ledger_gives_it(windows, stops):
    """Whatever roll-backs pass over, and wherever the run was stopped, none of it is met."""
    rollbacks = tuple(
        Rollback(checkpoint_step=a, first_batch=b, batches=n, learning_rate_factor=0.5) for a, b, n in windows
    )
    ledger = plan(spec_of(budget={"tokens": 15 * 64, "globalBatchSize": 8}), Adjustments(rollbacks=rollbacks))
    made, shares = made_corpus(), (2.0, 1.0)
    all_batches, cursor = [], Cursor.at_start(2)
    for _ in range(ledger.batch_at(14) + 1):
        batch, cursor = made.take(cursor, 8, shares)
        all_batches.append(batch)
    cursor, prefetch = Cursor.at_start(2), Prefetch(made, 8, 0, 1)
    for step in range(15):
        if step in stops:
            prefetch.close()
            prefetch = Prefetch(made, 8, 0, 1)
        rows = prefetch.take(Wanted(cursor, shares, 8, ledger.passed_over_before(step)))
        assert rows.batch == all_batches[ledger.batch_at(step)]
        cursor = rows.after
        prefetch.ahead(Wanted(cursor, shares, 8, ledger.passed_over_before(step + 1)))
    prefetch.close()


def test_what_was_guessed_right_is_made_once_and_in_the_thread(prefetch, monkeypatch):
    threads = []
    real = Corpus.rows
    monkeypatch.setattr(
        Corpus, "rows", lambda *args: threads.append(threading.current_thread().name) or real(*args)
    )
    wanted = Wanted(Cursor.at_start(2), (1.0, 1.0), 4)
    prefetch.ahead(wanted)
    prefetch.take(wanted)
    assert threads == ["prefetch_0"]


def test_an_error_in_the_thread_is_raised_as_itself_when_its_rows_are_taken(prefetch):
    wanted = Wanted(Cursor.at_start(2), (0.0, 0.0), 4)
    prefetch.ahead(wanted)
    with pytest.raises(ValueError, match="must be at least 0, and one of them above"):
        prefetch.take(wanted)
    assert prefetch.take(Wanted(Cursor.at_start(2), (1.0, 0.0), 4)).after.consumed == (8, 0)


def test_closing_ends_the_thread_with_rows_still_to_be_made(corpus):
    prefetch = Prefetch(corpus, 8, 0, 1)
    for _ in range(50):
        prefetch.ahead(Wanted(Cursor.at_start(2), (1.0, 1.0), 4))
    prefetch.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
