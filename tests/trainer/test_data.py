"""Text into tokens: what is read, kept and refused."""

import gzip
import json
import random
from fractions import Fraction

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from bitnet_trainer.data import SourceText, open_source
from bitnet_trainer.data.records import Tally, TextFile, records
from bitnet_trainer.errors import DataUnavailable

EOS = 1


@pytest.fixture
def read(tmp_path, tokenizer):
    """Reads a source by its path, as a list of token ids."""
    return lambda path: open_source(SourceText("books", path), tokenizer, tmp_path / "cache").tokens.tolist()


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


def test_tokens_are_told_of_as_they_are_made(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("w2 w3")
    (tmp_path / "b.txt").write_text("w4")
    told = []
    for _ in range(2):
        open_source(SourceText("books", tmp_path), tokenizer, tmp_path / "runs" / "tokens", heard=told.append)
    assert told == [2, 1, 1, 1], "found made, they are not told of again"


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
    assert open_source(SourceText("books", tmp_path), tokenizer, cache).tokens.tolist() == [2, EOS, 2, EOS]
    with pytest.raises(DataUnavailable, match=r"this run's own folder .*mine left out"):
        open_source(SourceText("books", tmp_path / "runs"), tokenizer, cache)


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
    monkeypatch.setattr("bitnet_trainer.data.sources._AT_ONCE", 40)
    path = tmp_path / "a.txt"
    ids = [2 + n % 50 for n in range(200)]
    path.write_text("".join(f"w{id_}" + ("\n" if n % 7 == 6 else " ") for n, id_ in enumerate(ids)))
    assert read(path) == [*ids, EOS]


def test_how_many_documents_are_tokenised_at_once_changes_nothing(tmp_path, tokenizer, monkeypatch):
    lengths = [1, 7, 30, 2, 2, 55, 1, 90, 3]
    texts = [" ".join(f"w{2 + n % 50}" for n in range(length)) for length in lengths]
    lines = (json.dumps({"text": text}) for text in texts)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    expected = [id_ for length in lengths for id_ in [*(2 + n % 50 for n in range(length)), EOS]]
    calls = []
    for at_once in (360, 4000):  # the longest has 343 characters
        monkeypatch.setattr("bitnet_trainer.data.sources._AT_ONCE", at_once)
        counted = Counted(tokenizer)
        cache = tmp_path / str(at_once)
        found = open_source(SourceText("books", tmp_path / "a.jsonl"), counted, cache).tokens.tolist()
        assert found == expected
        calls.append(counted.calls)
    assert calls == [2, 1]


class Counted:
    """A tokenizer that counts how often it is called."""

    def __init__(self, tokenizer):
        self.eos_token_id, self.get_vocab = tokenizer.eos_token_id, tokenizer.get_vocab
        self.tokenizer, self.calls = tokenizer, 0

    def __call__(self, text, **options):
        self.calls += 1
        return self.tokenizer(text, **options)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", None, r"'books': .*a\.txt does not exist\. Mend its uri"),
        ("a.txt", b"", r"a\.txt holds no text\. Put text in it"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.csv", b"w2", r"ends in '\.csv', which is not read\. Give a \.txt, .* or \.parquet"),
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
        return open_source(SourceText("books", mostly_whole), tokenizer, tmp_path / "cache", share)

    kept = opened(Fraction(3, 1000))
    assert kept.tokens.tolist() == [2, EOS] * 501 + [3, EOS] + [2, EOS] * 495
    assert (kept.reading.records, kept.reading.corrupt) == (1000, 3)
    assert [wrong.split(" Write ")[0].split(" (")[0] for wrong in kept.reading.first] == [
        f"{mostly_whole}/a.jsonl, line 4 is not JSON that can be read",
        f"{mostly_whole}/a.jsonl, line 5 is not UTF-8",
        f"{mostly_whole}/b.jsonl, line 4 has no string `text`, and has `txt`.",
    ]
    assert opened(Fraction(1)).reading == kept.reading, "from the cache"
    says = r"3 of 1,000 records .* first: .*a\.jsonl, line 4 .* 0\.003 .*corruptShare allows 0\.00299"
    with pytest.raises(DataUnavailable, match=says):
        opened(Fraction(299, 100_000))
    with pytest.raises(DataUnavailable, match=says):
        open_source(SourceText("books", mostly_whole), tokenizer, tmp_path / "new", Fraction(299, 100_000))
    assert not list(tmp_path.glob("new/*"))


def test_a_source_with_nothing_but_corrupt_records_is_empty(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text("no\njson\n")
    with pytest.raises(DataUnavailable, match=r"a\.jsonl holds no record .* 2 of 2 .*line 1 is not JSON"):
        open_source(SourceText("books", tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache", Fraction(1))


def test_only_the_first_corrupt_records_are_named(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text("no json\n" * 50 + '{"text": "w2"}')
    kept = open_source(SourceText("books", tmp_path / "a.jsonl"), tokenizer, tmp_path / "cache", Fraction(1))
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
    kept = open_source(SourceText("books", tmp_path), tokenizer, tmp_path / "run" / "tokens", Fraction(1, 2))
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
    for record in records(TextFile("books", path, str(path)), Tally()):
        seen += len(record.text)
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert seen == 32_000_000
    assert most < 12_000_000


def zstd(content):
    """As the program zstd packs it: a frame that a stream can read, and more may follow."""
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return packed.getvalue().to_pybytes()


@pytest.mark.parametrize(("suffix", "packed"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_packed_jsonl_file_is_as_the_plain_one(tmp_path, read, suffix, packed):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed(b'{"text": "w2 w3"}\n') + packed(b'{"text": "w4"}'))
    assert read(path) == [2, 3, EOS, 4, EOS]


def test_a_packed_text_file_is_a_document(tmp_path, read):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"w2 w3\n\nw4"))
    assert read(path) == [2, 3, 4, EOS]


def test_the_text_is_in_the_field_that_the_source_names(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"body": "w2", "text": "w9"}\n{"text": "w9", "id": 1}\n')
    parquet.write_table(pyarrow.table({"text": ["w9"], "body": ["w3"]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("w4")
    text = SourceText("books", tmp_path, field="body")
    kept = open_source(text, tokenizer, tmp_path / "run" / "tokens", Fraction(1, 2))
    assert kept.tokens.tolist() == [2, EOS, 3, EOS, 4, EOS]
    assert "line 2 has no string `body`, and has `text`, `id`" in kept.reading.first[0]
    with pytest.raises(DataUnavailable, match="corruptShare allows 0:"):
        open_source(text, tokenizer, tmp_path / "run" / "tokens")
    plain = open_source(SourceText("books", tmp_path), tokenizer, tmp_path / "run" / "tokens")
    assert plain.tokens.tolist() == [9, EOS, 9, EOS, 9, EOS, 4, EOS], "other tokens of the same files"


# Without the time that gzip writes into its header: each worker of pytest-xdist must name these tests alike.
PACKED = gzip.compress(b'{"text": "w2"}\n' * 1000, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", b'{"text": "w2"}', r"a\.jsonl\.gz cannot be unpacked \(Not a gzipped file"),
        ("a.jsonl.gz", PACKED[:-12], r"cannot be unpacked \(Compressed file ended.*Copy it anew"),
        ("a.jsonl.gz", PACKED[:12] + b"\xff" * 20 + PACKED[32:], r"cannot be unpacked \(Error -3"),
        ("a.jsonl.gz", b"", r"a\.jsonl\.gz is empty, which no packer leaves.* Copy it anew"),
        ("a.jsonl.zst", b"", r"a\.jsonl\.zst is empty"),
        ("a.jsonl.zst", b'{"text": "w2"}', r"cannot be unpacked \(ZSTD decompress failed.*pack it with zstd"),
        ("a.jsonl.zst", zstd(b"[]\n" * 9)[:-5], r"cannot be unpacked \(Truncated .*Copy it anew"),
        ("a.gz", PACKED, r"ends in '\.gz', which is not read"),
        ("a.parquet", b"PAR1", r"a\.parquet is not Parquet that can be read after row 0"),
    ],
)
def test_a_file_that_cannot_be_unpacked_is_an_error_whatever_the_share(
    tmp_path, tokenizer, name, content, says
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataUnavailable, match=says):
        open_source(SourceText("books", tmp_path / name), tokenizer, tmp_path / "cache", Fraction(1))
    assert not list(tmp_path.glob("cache/*"))


def test_a_parquet_file_without_text_or_cut_off_is_refused(tmp_path, read):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"content": ["w2"], "id": [1]}), path)
    with pytest.raises(DataUnavailable, match=r"no column `text`, and has content, id\. Name"):
        read(path)
    write_parquet(path, ["w2"] * 5000)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataUnavailable, match="is not Parquet"):
        read(path)


def test_a_folder_without_text_is_refused(tmp_path, read):
    with pytest.raises(DataUnavailable, match=r"holds no \.txt, .*\.jsonl\.zst or \.parquet file"):
        read(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(read, tokenizer, words):
    tokenizer.eos_token = None
    with pytest.raises(DataUnavailable, match=r"names no end-of-text token.*tokenizer_config\.json"):
        read(words("a.txt", 5))
