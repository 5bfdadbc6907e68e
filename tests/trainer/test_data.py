"""Text into tokens, tokens into sequences: what is read, kept, held out and refused."""

import gzip
import json
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from bitnet_trainer.data import Corpus, Cursor, SourceText, open_corpus, open_source
from bitnet_trainer.data.packing import pack
from bitnet_trainer.data.records import Tally, records
from bitnet_trainer.errors import DataUnavailable

EOS = 1


@pytest.fixture
def read(tmp_path, tokenizer):
    """Reads a source by its path, as a list of token ids."""
    return lambda path: open_source("books", path, tokenizer, tmp_path / "cache").tokens.tolist()


@pytest.fixture
def words(tmp_path):
    """Writes a .txt file of `count` words."""

    def write(name: str, count: int):
        path = tmp_path / name
        draw = random.Random(name)
        path.write_text(" ".join(f"w{draw.randrange(2, 61)}" for _ in range(count)))
        return path

    return write


def test_a_text_file_is_one_document(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_text("w2 w3\n\nw4\n")
    assert read(path) == [2, 3, 4, EOS]


def test_a_jsonl_file_has_a_document_a_line(tmp_path, read):
    path = tmp_path / "a.jsonl"
    lines = [
        json.dumps({"text": "w2 w3\u2028w4", "id": 1}, ensure_ascii=False),
        "",
        '{"text": " "}',
        '{"text": "w5"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read(path) == [2, 3, 4, EOS, 5, EOS]


def test_a_folder_is_read_in_the_order_of_names(tmp_path, read):
    folder = tmp_path / "texts"
    (folder / "deeper").mkdir(parents=True)
    for name, text in {
        "b.txt": "w3",
        "a.jsonl": '{"text": "w2"}',
        "deeper/c.txt": "w4",
        "d.md": "w9",
    }.items():
        (folder / name).write_text(text)
    assert read(folder) == [2, EOS, 3, EOS, 4, EOS]


def test_hidden_files_and_the_runs_own_are_not_text(tmp_path, tokenizer):
    for name in (
        "a.txt",
        ".hidden.txt",
        ".ipynb_checkpoints/b.txt",
        "deeper/.git/c.txt",
        "runs/mine/metrics.jsonl",
        "runs/mine/checkpoints/step-00000005/d.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("w2")
    (tmp_path / "linked.txt").symlink_to(tmp_path / ".hidden.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    cache = tmp_path / "runs" / "mine" / "tokens"
    assert open_source("books", tmp_path, tokenizer, cache).tokens.tolist() == [2, EOS, 2, EOS]
    with pytest.raises(DataUnavailable, match=r"this run's own folder .*mine left out"):
        open_source("books", tmp_path / "runs", tokenizer, cache)


def test_a_source_in_a_hidden_folder_or_below_the_runs_own_is_read(tmp_path, read):
    folder = tmp_path / ".cache" / "texts"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("w2")
    assert read(folder) == [2, EOS]


def test_tokens_are_kept_until_text_or_tokenizer_change(tmp_path, read, tokenizer, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("w2 w3")
    read(path)
    calls = []
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: calls.append(1) or {"input_ids": [[7]]})
    assert read(path) == [2, 3, EOS]
    assert not calls
    path.write_text("w2 w4")
    assert read(path) == [7, EOS]
    tokenizer.add_tokens(["new"])
    read(path)
    assert len(calls) == 2
    assert len(list((tmp_path / "cache").glob("*.tokens"))) == 3


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), DataUnavailable), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace", "tempfile.NamedTemporaryFile"])
def test_tokens_that_cannot_be_kept_leave_nothing_behind(
    tmp_path, read, words, monkeypatch, fails, error, raised
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fails, fail)
    with pytest.raises(raised, match="No space left on device" if raised is DataUnavailable else None):
        read(words("a.txt", 5))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_long_document_is_cut_after_a_newline_and_nothing_is_lost(tmp_path, read, monkeypatch):
    monkeypatch.setattr("bitnet_trainer.data.sources._LONGEST_PIECE", 40)
    path = tmp_path / "a.txt"
    ids = [2 + n % 50 for n in range(200)]
    path.write_text("".join(f"w{id_}" + ("\n" if n % 7 == 6 else " ") for n, id_ in enumerate(ids)))
    assert read(path) == [*ids, EOS]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", None, r"'books': .*a\.txt does not exist\. Mend its uri"),
        ("a.txt", b"", r"a\.txt holds no text\. Put text in it"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.csv", b"w2", r"ends in '\.csv', which is not read\. Give a \.txt, \.jsonl, .* or \.parquet"),
        ("a.txt", b"w2 \xe9", r"not UTF-8 \(byte 3 is 0xe9\)\. Convert it, as in `iconv -f latin1"),
        ("a.jsonl", b'{"text": "w2"}\n{"text": ', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"txt": "w2"}', "line 1 has no string `text`"),
        ("a.jsonl", b"[1]", "line 1 has no string `text`"),
        (
            "a.jsonl",
            b'{"text": "w2"}\n{"text": "w\\ud83d"}',
            r"a\.jsonl, line 2 has half a surrogate pair .*character 1 is \\ud83d\)\. Write both",
        ),
        pytest.param(
            "a.jsonl",
            b'{"text": "w2", "n": ' + b"1" * 5000 + b"}",
            r"a\.jsonl, line 1 is not JSON .*4300.*Write one object",
            id="a number of 5,000 digits",
        ),
        pytest.param(
            "a.jsonl",
            b"[" * 200_000,
            r"a\.jsonl, line 1 is not JSON .*recursion.*Write one object",
            id="deep nesting",
        ),
    ],
)
def test_what_cannot_be_read_is_named_with_its_mend(tmp_path, read, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataUnavailable, match=says):
        read(tmp_path / name)
    assert not list(tmp_path.glob("cache/*"))


def test_a_whole_surrogate_pair_is_text(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "w2 \\ud83d\\ude00"}')
    assert read(path)[0] == 2


@pytest.fixture
def mostly_whole(tmp_path):
    """1,000 records in two files, three of them corrupt, a blank line among them."""
    lines = [b'{"text": "w2"}\n'] * 500
    lines[3:5] = [b'{"text": \n', b'{"text": "w\xe9"}\n']
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(lines) + b" \n")
    lines[3:5] = [b'{"txt": "w2"}\n', b'{"text": "w3"}\n']
    (tmp_path / "texts" / "b.jsonl").write_bytes(b"".join(lines))
    return tmp_path / "texts"


def test_corrupt_records_within_the_share_are_left_out_counted_and_named(tmp_path, tokenizer, mostly_whole):
    def opened(share):
        return open_source("books", mostly_whole, tokenizer, tmp_path / "cache", share)

    kept = opened(Fraction(3, 1000))
    assert kept.tokens.tolist() == [2, EOS] * 501 + [3, EOS] + [2, EOS] * 495
    assert (kept.reading.records, kept.reading.corrupt) == (1000, 3)
    assert [wrong.split(" Write ")[0].split(" (")[0] for wrong in kept.reading.first] == [
        f"{mostly_whole}/a.jsonl, line 4 is not JSON that can be read",
        f"{mostly_whole}/a.jsonl, line 5 is not UTF-8",
        f"{mostly_whole}/b.jsonl, line 4 has no string `text`.",
    ]
    assert opened(Fraction(1)).reading == kept.reading, "from the cache"
    says = r"3 of 1,000 records .* first: .*a\.jsonl, line 4 .* 0\.003 .*corruptShare allows 0\.00299"
    with pytest.raises(DataUnavailable, match=says):
        opened(Fraction(299, 100_000))
    with pytest.raises(DataUnavailable, match=says):
        open_source("books", mostly_whole, tokenizer, tmp_path / "new", Fraction(299, 100_000))
    assert not list(tmp_path.glob("new/*"))


def test_a_source_with_nothing_but_corrupt_records_is_empty(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text("no\njson\n")
    with pytest.raises(DataUnavailable, match="holds no text"):
        open_source("books", tmp_path / "a.jsonl", tokenizer, tmp_path / "cache", Fraction(1))


def test_only_the_first_corrupt_records_are_named(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text("no json\n" * 50 + '{"text": "w2"}')
    kept = open_source("books", tmp_path / "a.jsonl", tokenizer, tmp_path / "cache", Fraction(1))
    assert kept.reading.corrupt == 50
    assert len(kept.reading.first) == 5


def write_parquet(path, texts, **options):
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, path, **options)
    return path


def test_a_parquet_file_has_a_document_a_row(tmp_path, read):
    path = write_parquet(tmp_path / "a.parquet", ["w2 w3", " ", "w4\n"], row_group_size=2)
    assert read(path) == [2, 3, EOS, 4, EOS]


def test_rows_that_hold_no_text_are_corrupt(tmp_path, tokenizer):
    strings = pyarrow.StringArray.from_buffers(
        3,
        pyarrow.py_buffer(np.array([0, 2, 4, 6], np.int32)),
        pyarrow.py_buffer(b"w2\xe9\xe9w3"),
    )
    parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", ["w4", None])
    kept = open_source("books", tmp_path, tokenizer, tmp_path / "run" / "tokens", Fraction(1, 2))
    assert kept.tokens.tolist() == [2, EOS, 3, EOS, 4, EOS]
    assert (kept.reading.records, kept.reading.corrupt) == (5, 2)
    first, second = kept.reading.first
    assert "a.parquet, row 2 is not UTF-8" in first
    assert "b.parquet, row 2 has no string `text`" in second


def test_a_large_parquet_file_is_never_whole_in_memory(tmp_path):
    """32 MB in one row group, of text that is not repeated."""
    draw = random.Random(0)
    path = write_parquet(tmp_path / "a.parquet", [draw.randbytes(2000).hex() for _ in range(8000)])
    before, most, seen = pyarrow.total_allocated_bytes(), 0, 0
    for record in records("books", path, Tally()):
        seen += len(record.text)
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert seen == 32_000_000
    assert most < 12_000_000


def test_a_packed_jsonl_file_is_as_the_plain_one(tmp_path, read):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "w2 w3"}\n') + gzip.compress(b'{"text": "w4"}'))
    assert read(path) == [2, 3, EOS, 4, EOS]


PACKED = gzip.compress(b'{"text": "w2"}\n' * 1000)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", b'{"text": "w2"}', r"a\.jsonl\.gz cannot be unpacked \(Not a gzipped file"),
        ("a.jsonl.gz", PACKED[:-12], r"cannot be unpacked \(Compressed file ended.*Copy it anew"),
        ("a.jsonl.gz", PACKED[:12] + b"\xff" * 20 + PACKED[32:], r"cannot be unpacked \(Error -3"),
        ("a.gz", PACKED, r"ends in '\.gz', which is not read"),
        ("a.parquet", b"PAR1", r"a\.parquet is not Parquet that can be read after row 0"),
    ],
)
def test_a_file_that_cannot_be_unpacked_is_an_error_whatever_the_share(
    tmp_path, tokenizer, name, content, says
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataUnavailable, match=says):
        open_source("books", tmp_path / name, tokenizer, tmp_path / "cache", Fraction(1))
    assert not list(tmp_path.glob("cache/*"))


def test_a_parquet_file_without_text_or_cut_off_is_refused(tmp_path, read):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["w2"], "id": [1]}), path)
    with pytest.raises(DataUnavailable, match=r"no column `text`, and has content, id\. Rename"):
        read(path)
    write_parquet(path, ["w2"] * 5000)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataUnavailable, match="is not Parquet"):
        read(path)


def test_a_folder_without_text_is_refused(tmp_path, read):
    with pytest.raises(DataUnavailable, match=r"holds no \.txt, \.jsonl, \.jsonl\.gz or \.parquet file"):
        read(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(read, tokenizer, words):
    tokenizer.eos_token = None
    with pytest.raises(DataUnavailable, match=r"names no end-of-text token.*tokenizer_config\.json"):
        read(words("a.txt", 5))


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
