"""Tokens into sequences: what is trained on by which rank, what is held out, and in which order."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitnet_trainer.data import Corpus, Cursor, SourceText, open_corpus
from bitnet_trainer.data.packing import pack
from bitnet_trainer.errors import DataUnavailable

EOS = 1


def test_the_tail_is_held_out_and_nothing_is_in_both():
    tokens = np.arange(107, dtype=np.uint32)
    source = pack("books", tokens, 10, Fraction(1, 4))
    assert (source.training_sequences, source.held_out_sequences) == (7, 3)
    rows = [*map(source.training, range(7)), *map(source.held_out, range(3))]
    assert np.concatenate(rows).tolist() == list(range(100))
    for index in (-1, 7):
        with pytest.raises(IndexError):
            source.training(index)
    with pytest.raises(IndexError):
        source.held_out(3)


@pytest.mark.parametrize(("tokens", "trained", "held_out"), [(20, 1, 1), (39, 2, 1), (1000, 98, 2)])
def test_each_side_has_a_sequence(tokens, trained, held_out):
    source = pack("books", np.zeros(tokens, np.uint32), 10, Fraction(1, 50))
    assert (source.training_sequences, source.held_out_sequences) == (trained, held_out)


def test_a_source_shorter_than_two_sequences_is_refused():
    with pytest.raises(DataUnavailable, match=r"'books' has 19 tokens, .* take 20\. Add text, or lower"):
        pack("books", np.zeros(19, np.uint32), 10, Fraction(1, 50))


@pytest.mark.parametrize("at_once", [1, 7, 1 << 24])
@pytest.mark.parametrize("place", [0, 13, 29])
def test_the_largest_token_is_found_wherever_it_stands(monkeypatch, at_once, place):
    monkeypatch.setattr("bitnet_trainer.data.packing._TOKENS_AT_ONCE", at_once)
    tokens = np.zeros(30, np.uint32)
    tokens[place] = 2**31
    sources = tuple(pack(name, part, 4, Fraction(1, 5)) for name, part in (("a", tokens // 2), ("b", tokens)))
    assert Corpus(sources, (1.0, 1.0), 0).largest_token() == 2**31


@pytest.fixture
def corpus(tmp_path, tokenizer, words):
    texts = [SourceText("a", words("a.txt", 100), 2.0), SourceText("b", words("b.txt", 60), 1.0)]

    def make(seed: int = 0):
        return open_corpus(
            texts, tokenizer, sequence_length=10, held_out=Fraction(1, 5), seed=seed, cache=tmp_path / "cache"
        )

    return make


def micro_batches(corpus, batch, world, size):
    """What all ranks train on, a list for each."""
    return [list(corpus.micro_batches(batch, rank, world, size)) for rank in range(world)]


def test_ranks_train_on_different_sequences_of_one_batch(corpus):
    """Trap 9: every rank reads the same data."""
    made = corpus()
    batch, _ = made.take(Cursor.at_start(2), 8, made.weights)
    (alone,) = micro_batches(made, batch, 1, 8)[0]
    together = [rows for own in micro_batches(made, batch, 2, 2) for rows in own]
    assert alone.input_ids.shape == (8, 10)
    assert alone.input_ids.dtype == torch.int64
    assert alone.ids == batch == tuple(id_ for rows in together for id_ in rows.ids)
    assert torch.equal(alone.input_ids, torch.cat([rows.input_ids for rows in together]))
    (first,), (second,) = micro_batches(made, batch, 2, 4)
    assert not any(torch.equal(row, other) for row in first.input_ids for other in second.input_ids)


def test_rows_are_whole_and_say_which_sequences_they_are(corpus):
    made = corpus()
    batch, _ = made.take(Cursor.at_start(2), 6, made.weights)
    for rows in made.micro_batches(batch, 0, 1, 4):
        assert rows.attention_mask is None
        assert rows.classes is None
        assert torch.equal(rows.labels, rows.input_ids)
        for id_, row in zip(rows.ids, rows.input_ids, strict=True):
            assert row.tolist() == made.sources[id_.source].training(id_.index).tolist()


def test_made_up_rows_are_as_long_as_any_and_each_is_another_sequence(corpus):
    made = corpus()
    before = made.fingerprint()
    rows = made.made_up(5)
    assert rows.input_ids.shape == (5, 10)
    assert len(set(rows.ids)) == 5
    assert rows.attention_mask is rows.position_ids is None
    assert rows.input_ids.max() <= made.largest_token()
    assert made.fingerprint() == before


@pytest.mark.parametrize(("world", "sizes"), [(1, [8, 8, 4, 4, 1]), (2, [4, 4, 2, 2, 1]), (4, [2, 2, 1])])
def test_a_smaller_micro_batch_trains_on_the_same_sequences_a_step(corpus, world, sizes):
    """Trap 8: as a teacher comes in, the micro batch halves, and the global batch must not with it."""
    made = corpus()
    cursor = twin = Cursor.at_start(2)
    for step, size in enumerate(sizes, start=1):
        batch, cursor = made.take(cursor, 8, made.weights)
        expected, twin = made.take(twin, 8, made.weights)
        parts = micro_batches(made, batch, world, size)
        assert [len(own) for own in parts] == [8 // world // size] * world
        assert tuple(id_ for own in parts for rows in own for id_ in rows.ids) == expected
        assert sum(rows.input_ids.numel() for own in parts for rows in own) == 8 * 10
        assert cursor == twin
        assert cursor.sequences == 8 * step


def test_two_ranks_then_four_neither_repeat_nor_skip(corpus):
    """Trap 9, at once with other weights and another micro batch."""
    made = corpus()
    first, cursor = made.take(Cursor.at_start(2), 4, made.weights)
    second, after = made.take(cursor.rebased(), 4, (0.0, 1.0))
    read = [
        id_
        for batch, world, size in ((first, 2, 2), (second, 4, 1))
        for own in micro_batches(made, batch, world, size)
        for rows in own
        for id_ in rows.ids
    ]
    assert len(set(read)) == len(read) == 8
    assert after.consumed == (cursor.consumed[0], cursor.consumed[1] + 4)


def test_held_out_rows_are_drawn_by_weight_and_move_on_with_training(corpus):
    made = corpus()
    kept_back = {tuple(row) for row in made.held_out().input_ids.tolist()}
    seen = set()
    for consumed in range(20):
        ids = made.take_held_out(Cursor((consumed, 3), (0, 0)), 2, (1.0, 0.0))
        assert {id_.source for id_ in ids} == {0}
        rows = made.held_out_rows(ids)
        assert rows.ids == (), "a mask or kept logits of training text would be taken for theirs"
        seen |= {tuple(row) for row in rows.input_ids.tolist()}
    assert seen <= kept_back
    assert len(seen) == made.sources[0].held_out_sequences


def test_a_corpus_smaller_than_a_batch_is_repeated_within_it(corpus):
    made = corpus()
    trained = sum(source.training_sequences for source in made.sources)
    batch, cursor = made.take(Cursor.at_start(2), 3 * trained, made.weights)
    assert len(batch) == cursor.sequences == 3 * trained
    assert {id_.epoch for id_ in batch} >= {0, 1, 2}
    assert len(set(batch)) == len(batch)


def test_sources_take_turns_in_the_held_out_text(corpus):
    made = corpus()
    whole = made.held_out().input_ids
    assert len(whole) == sum(source.held_out_sequences for source in made.sources)
    assert torch.equal(made.held_out(2).input_ids, whole[:2])
    expected = np.stack([made.sources[0].held_out(0), made.sources[1].held_out(0)])
    assert torch.equal(whole[:2], torch.from_numpy(expected))


def test_the_fingerprint_tells_other_text_and_another_order(corpus, words):
    first = corpus().fingerprint()
    assert replace(corpus(), weights=(1.0, 1.0)).fingerprint() != first
    assert corpus().fingerprint() == first
    assert corpus(seed=1).fingerprint() != first
    words("b.txt", 61)
    assert corpus().fingerprint() != first
