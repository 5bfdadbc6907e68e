"""Labelled text: a record a row, what is held out, and what is refused."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.batch import IGNORED
from bitnet_trainer.data import Cursor, SourceText, open_labelled
from bitnet_trainer.data.labelled import _kept_back
from bitnet_trainer.errors import DataUnavailable

EOS, S = 1, 8
LABELS = ("bad", "good", "grün")


def write(path, *records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in records))
    return path


@pytest.fixture
def open_(tmp_path, tokenizer):
    """Opens labelled sources by their paths."""

    def open_(*paths, labels=LABELS, seed=0, sequence_length=S, held_out=Fraction(1, 4)):
        texts = [SourceText(f"s{number}", path, number + 1.0) for number, path in enumerate(paths)]
        return open_labelled(
            texts,
            tokenizer,
            labels,
            sequence_length=sequence_length,
            held_out=held_out,
            seed=seed,
            cache=tmp_path / "run" / "tokens",
        )

    return open_


@pytest.fixture
def reviews(tmp_path):
    """24 records of lengths 1 to 12, sorted by label."""
    return write(
        tmp_path / "reviews.jsonl",
        *(
            (" ".join(f"w{2 + (number + n) % 50}" for n in range(1 + number % 12)), LABELS[number // 8])
            for number in range(24)
        ),
    )


def test_a_row_is_a_record_cut_and_padded(tmp_path, open_):
    texts = {3: "w2 w3 w4", 7: "w2 w3 w4 w5 w6 w7 w8", 8: "w2 w3 w4 w5 w6 w7 w8 w9", 9: "w2 " * 9}
    corpus = open_(write(tmp_path / "a.jsonl", *((text, "good") for text in texts.values()), ("w9", "bad")))
    batch, _ = corpus.take(Cursor.at_start(1), corpus.sources[0].training_sequences, corpus.weights)
    rows = [corpus.rows(batch), corpus.held_out()]
    found = {
        tuple(ids): (labels, mask, class_)
        for part in rows
        for ids, labels, mask, class_ in zip(
            part.input_ids.tolist(),
            part.labels.tolist(),
            part.attention_mask.tolist(),
            part.classes.tolist(),
            strict=True,
        )
    }
    assert found.keys() == {
        (2, 3, 4, EOS, EOS, EOS, EOS, EOS),
        (2, 3, 4, 5, 6, 7, 8, EOS),
        (2, 3, 4, 5, 6, 7, 8, 9),
        (2,) * 8,
        (9, EOS, EOS, EOS, EOS, EOS, EOS, EOS),
    }
    labels, mask, class_ = found[(2, 3, 4, EOS, EOS, EOS, EOS, EOS)]
    assert labels == [2, 3, 4, *[IGNORED] * 5]
    assert mask == [1, 1, 1, 0, 0, 0, 0, 0]
    assert class_ == 1
    assert found[(2, 3, 4, 5, 6, 7, 8, EOS)][1] == [*[1] * 7, 0]
    assert found[(2, 3, 4, 5, 6, 7, 8, 9)][1] == [1] * 8
    assert found[(9, EOS, EOS, EOS, EOS, EOS, EOS, EOS)][2] == 0


def test_a_text_that_ends_in_the_end_of_text_token_ends_before_it(tmp_path, open_):
    """transformers' classifiers would read the token before it, and training another one."""
    text = "w2 </s> w3 </s> </s>"
    rows = open_(write(tmp_path / "a.jsonl", (text, "good"), (text, "good"), ("</s>", "bad"))).held_out()
    assert rows.input_ids.tolist() == [[2, EOS, 3, *[EOS] * 5]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, *[0] * 5]]


def test_ranks_share_a_batch_of_rows_with_their_classes(open_, reviews):
    """Trap 9, for labelled text."""
    corpus = open_(reviews)
    batch, cursor = corpus.take(Cursor.at_start(1), 12, corpus.weights)
    assert cursor.consumed == (12,)
    parts = [rows for rank in (0, 1) for rows in corpus.micro_batches(batch, rank, 2, 3)]
    assert [rows.input_ids.shape for rows in parts] == [(3, S)] * 4
    assert tuple(id_ for rows in parts for id_ in rows.ids) == batch
    assert len(set(batch)) == 12
    whole = corpus.rows(batch)
    for name in ("input_ids", "labels", "attention_mask", "classes"):
        assert torch.equal(torch.cat([getattr(rows, name) for rows in parts]), getattr(whole, name))
        assert getattr(whole, name).dtype == torch.int64
    for id_, class_ in zip(whole.ids, whole.classes, strict=True):
        assert corpus.sources[0].training(id_.index)[-1] == class_


def test_made_up_rows_are_as_long_as_any_that_has_padding(open_, reviews):
    """Of rows without padding no mask is made, and they take less memory."""
    corpus = open_(reviews)
    rows = corpus.made_up(3)
    assert rows.input_ids.shape == (3, S)
    assert rows.attention_mask.tolist() == [[*[1] * (S - 1), 0]] * 3
    assert len(set(rows.ids)) == 3
    assert rows.classes.tolist() == [corpus.sources[0].training(0)[-1]] * 3


def test_the_first_held_out_rows_have_every_label_in_text_sorted_by_label(open_, reviews):
    corpus = open_(reviews)
    held_out = corpus.held_out()
    assert held_out.classes.tolist() == [0, 1, 2, 0, 1, 2]
    assert corpus.held_out(3).classes.tolist() == [0, 1, 2]
    trained = {tuple(corpus.sources[0].training(index)) for index in range(18)}
    assert not trained & {tuple(corpus.sources[0].held_out(index)) for index in range(6)}
    for source, index in ((corpus.sources[0].training, 18), (corpus.sources[0].held_out, -1)):
        with pytest.raises(IndexError, match=r"'s0' has .* such sequences"):
            source(index)


@given(
    classes=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    held_out=st.fractions(Fraction(1, 100), Fraction(99, 100)),
)
def test_both_sides_have_records_and_every_label_that_has_two(classes, held_out):
    kept_back = _kept_back(np.array(classes, np.uint32), held_out).tolist()
    assert len(set(kept_back)) == len(kept_back)
    assert 0 < len(kept_back) < len(classes)
    outside = [class_ for row, class_ in enumerate(classes) if row not in kept_back]
    for class_ in set(classes):
        times, inside = classes.count(class_), [classes[row] for row in kept_back].count(class_)
        if times > 1:
            assert class_ in outside
            assert inside == min(times - 1, -(-times * held_out // 1))
        else:
            assert inside == (len(set(classes)) == len(classes) and classes[-1] == class_)


def test_several_sources_are_mixed_and_take_turns(tmp_path, open_, reviews):
    other = write(tmp_path / "more" / "b.jsonl", *((f"w{n}", LABELS[n % 2]) for n in range(2, 22)))
    corpus = open_(reviews, other.parent)
    batch, _ = corpus.take(Cursor.at_start(2), 9, corpus.weights)
    assert sorted(id_.source for id_ in batch) == [0] * 3 + [1] * 6
    turns = [corpus.sources[turn % 2].held_out(turn // 2)[:-2] for turn in range(4)]
    assert torch.equal(corpus.held_out(4).input_ids, torch.from_numpy(np.stack(turns)))
    assert corpus.largest_token() == max(int(source.table[:, :-2].max()) for source in corpus.sources) == 32


def test_rows_are_kept_until_text_labels_or_length_change(tmp_path, open_, reviews, tokenizer, monkeypatch):
    first = open_(reviews)
    calls = []
    real = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda *args, **named: calls.append(1) or real(*args, **named)
    )
    assert torch.equal(open_(reviews).held_out().input_ids, first.held_out().input_ids)
    assert not calls
    cache = tmp_path / "run" / "tokens"
    for times, changed in enumerate(({"labels": LABELS[::-1]}, {"sequence_length": 9}), start=2):
        open_(reviews, **changed)
        assert len(list(cache.glob("*.tokens"))) == times
    reviews.write_text(reviews.read_text().replace("w2", "w3"))
    open_(reviews)
    assert len(list(cache.glob("*.tokens"))) == 4


def test_the_fingerprint_tells_text_labels_cut_and_seed(open_, reviews):
    prints = [
        open_(reviews).fingerprint(),
        open_(reviews, labels=LABELS[::-1]).fingerprint(),
        open_(reviews, held_out=Fraction(1, 2)).fingerprint(),
        open_(reviews, seed=1).fingerprint(),
    ]
    assert open_(reviews).fingerprint() == prints[0]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"text": "w2", "label": "good"}\n\n{"text": "w2", "label": "Good"}',
            r'\'s0\': .*a\.jsonl, line 3 has label "Good"; known are "bad", "good", "grün"\. Write .*, '
            r"or mend spec\.classification\.labels",
        ),
        ('{"text": "w2", "label": 1}', "line 1 has label 1; known are"),
        ('{"text": "w2", "label": ["good"]}', r'line 1 has label \["good"\]; known are'),
        ('{"text": "w2"}', "line 1 has no `label`; known are"),
        ('{"label": "good"}', "line 1 has no string `text`"),
        ('{"text": " ", "label": "good"}', r"a\.jsonl holds no text"),
        (
            '{"text": "w2", "label": "good"}\n{"text": "", "label": "bad"}',
            "has one record, and one is trained",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_mend(tmp_path, open_, content, says):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataUnavailable, match=says):
        open_(tmp_path / "a.jsonl")


def test_of_many_labels_an_error_names_a_few(tmp_path, open_):
    write(tmp_path / "a.jsonl", ("w2", "x"))
    with pytest.raises(DataUnavailable, match=r'known are "l0", .*"l19" and 80 more\. Write'):
        open_(tmp_path / "a.jsonl", labels=[f"l{n}" for n in range(100)])


def test_text_without_labels_is_refused(tmp_path, open_, tokenizer):
    folder = write(tmp_path / "texts" / "a.jsonl", ("w2", "good"), ("w3", "bad")).parent
    (folder / "b.txt").write_text("w2")
    with pytest.raises(DataUnavailable, match=r'b\.txt has no `label`; .* Write records such as \{"text"'):
        open_(folder)
    tokenizer.eos_token = None
    with pytest.raises(DataUnavailable, match="names no end-of-text token"):
        open_(folder / "a.jsonl")
