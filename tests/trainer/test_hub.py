"""Datasets of the hub, by the real library: streamed, pinned, and told plainly where they cannot be read."""

import io
import json
import random
import time
from fractions import Fraction

import datasets
import pyarrow
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from bitnet_trainer.data import Dataset, SourceText, open_labelled, open_source, pinned
from bitnet_trainer.data.origins import Origin
from bitnet_trainer.errors import DataUnavailable
from bitnet_trainer.export.gguf_tokenizer import PRE_TOKENIZERS
from byte_level import byte_level_tokenizer
from hub_server import TOKEN, Hub

EOS = 1


def parquet_of(texts, rows_a_group=100, **columns) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts, **columns}), file, row_group_size=rows_a_group)
    return file.getvalue()


def jsonl_of(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def text_of(origin: Origin, **more) -> SourceText:
    if isinstance(origin, Dataset):
        origin = pinned("web", origin)
    return SourceText("web", origin, **more)


@pytest.fixture
def read(tmp_path, tokenizer):
    """Reads a dataset, as a list of token ids."""

    def read(dataset, enough=None, share=0, **more):
        text = text_of(dataset, **more)
        return open_source(text, tokenizer, tmp_path / "tokens", Fraction(share), enough).tokens.tolist()

    return read


def test_a_parquet_dataset_is_read_in_the_order_of_its_files(hub: Hub, read):
    hub.write(
        "a/b",
        {"data/train-1.parquet": parquet_of(["w4"]), "data/train-0.parquet": parquet_of(["w2 w3", "w5"])},
    )
    assert read(Dataset("a/b")) == [2, 3, EOS, 5, EOS, 4, EOS]


def test_a_jsonl_dataset_is_read_from_its_field_and_corrupt_rows_are_counted(hub: Hub, tmp_path, tokenizer):
    rows = [{"body": "w2", "n": 1}, {"body": None, "n": 2}, {"body": "w3", "n": 3}, {"body": " ", "n": 4}]
    hub.write("a/b", {"train.jsonl": jsonl_of(*rows)})
    text = text_of(Dataset("a/b"), field="body")
    kept = open_source(text, tokenizer, tmp_path / "tokens", Fraction(1, 2))
    assert kept.tokens.tolist() == [2, EOS, 3, EOS]
    assert (kept.reading.records, kept.reading.corrupt) == (4, 1)
    assert "row 2 has no string `body`" in kept.reading.first[0]
    with pytest.raises(DataUnavailable, match=r"1 of 4 .* allows 0"):
        open_source(text, tokenizer, tmp_path / "tokens")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_no_more_is_fetched_than_the_run_can_ask_for(hub: Hub, read, kind):
    """Of 6 files with 1000 documents in each, which hardly pack, the first 40 documents.

    A reader looks tens of megabytes ahead, however long a file is.
    """
    draw = random.Random(0)
    texts = [f"w2 {draw.randbytes(10_000).hex()}" for _ in range(1000)]
    content = parquet_of(texts) if kind == "parquet" else jsonl_of(*({"text": text} for text in texts))
    hub.write("a/b", {f"data/train-{number}.{kind}": content for number in range(6)})
    tokens = read(Dataset("a/b"), enough=40 * 3)
    assert tokens == [2, 0, EOS] * 40
    assert 40 * 20_000 / 2 < (fetched := hub.content_bytes) < hub.size("a/b") / 3
    assert read(Dataset("a/b"), enough=40 * 3) == tokens
    assert hub.content_bytes == fetched, "the tokens are kept"


def test_tokenising_many_documents_at_once_reads_none_more(hub: Hub, tmp_path, monkeypatch):
    """Whose characters are many tokens each, or one of several."""
    tokenizer = byte_level_tokenizer(PRE_TOKENIZERS["gpt-2"])
    draw = random.Random(0)
    texts = ["".join(draw.choices("ab \u00e9\u4e2d\U0001f600", k=draw.randrange(1, 60))) for _ in range(60)]
    hub.write("a/b", {"train.jsonl": jsonl_of(*({"text": text} for text in texts))})
    few, many = [], []
    for at_once, found in ((60, few), (1 << 20, many)):
        monkeypatch.setattr("bitnet_trainer.data.sources._AT_ONCE", at_once)
        for enough in range(1, 2000, 400):
            kept = open_source(text_of(Dataset("a/b")), tokenizer, tmp_path / str(at_once), enough=enough)
            found.append((enough, kept.tokens.tolist(), kept.reading.records))
    assert few == many
    assert len({records for *_, records in few}) == 5


def test_a_small_dataset_is_read_whole(hub: Hub, read):
    hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w2"}, {"text": "w3"})})
    assert read(Dataset("a/b"), enough=10_000) == [2, EOS, 3, EOS]


def test_of_many_columns_the_text_alone_is_fetched(hub: Hub, read):
    draw = random.Random(0)
    large = [draw.randbytes(20_000) for _ in range(1000)]
    hub.write("a/b", {"train.parquet": parquet_of(["w2"] * 1000, rows_a_group=500, image=large)})
    assert read(Dataset("a/b")) == [2, EOS] * 1000
    assert hub.content_bytes < hub.size("a/b") / 1.5


SUBSETS = b"""---
configs:
- config_name: news
  data_files: [{split: train, path: news/train.jsonl}, {split: test, path: news/test.jsonl}]
- config_name: books
  data_files: [{split: train, path: books.jsonl}]
---
"""


@pytest.fixture
def subsets(hub: Hub) -> Hub:
    """A dataset with two subsets, and two splits of the first."""
    texts = {"news/train.jsonl": "w2", "news/test.jsonl": "w3", "books.jsonl": "w4"}
    hub.write(
        "a/b", {"README.md": SUBSETS, **{name: jsonl_of({"text": text}) for name, text in texts.items()}}
    )
    return hub


@pytest.mark.parametrize(
    ("subset", "split", "token"), [("news", "train", 2), ("news", "test", 3), ("books", "train", 4)]
)
@pytest.mark.usefixtures("subsets")
def test_a_subset_and_a_split_are_read_alone(read, subset, split, token):
    assert read(Dataset("a/b", subset, split)) == [token, EOS]


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (
            Dataset("a/c"),
            r"there is no such dataset, or it is private\. .*HF_TOKEN",
        ),
        (Dataset("a/b", revision="v9"), r"it has no revision 'v9'\. Check its name, revision"),
        (Dataset("a/b"), r"Config name is missing.*news.*books"),
        (Dataset("a/b", "poems"), r"'poems' not found.*news.*books"),
        (Dataset("a/b", "news", "dev"), r"dev.*train.*test"),
        (Dataset("a/b", "news", "train[:50%]"), r"train\[:50%\].*train.*test"),
    ],
    ids=["no dataset", "no revision", "a subset to choose", "no subset", "no split", "a part of a split"],
)
@pytest.mark.usefixtures("subsets")
def test_what_is_not_there_is_named_with_what_is(read, dataset, says):
    with pytest.raises(DataUnavailable, match=f"source 'web': .*{says}") as error:
        read(dataset)
    assert "\n" not in str(error.value)
    assert not error.value.transient


@pytest.mark.parametrize("when", ["where it is", "what it holds"])
def test_a_hub_that_cannot_answer_now_may_later(hub: Hub, read, monkeypatch, when):
    hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w2"})})
    dataset = Dataset("a/b") if when == "where it is" else pinned("web", Dataset("a/b"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.failing = 503
    with pytest.raises(DataUnavailable) as error:
        read(dataset)
    assert error.value.transient


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_field_that_no_row_has_is_named_with_those_there_are(hub: Hub, read, kind):
    content = {"parquet": parquet_of(["w2"], id=[1]), "jsonl": jsonl_of({"text": "w2", "id": 1})}[kind]
    hub.write("a/b", {f"train.{kind}": content})
    with pytest.raises(DataUnavailable, match=r"no column `body`, and has text, id.*`field`"):
        read(Dataset("a/b"), field="body")


@pytest.mark.parametrize(
    ("texts", "says"),
    [([], "holds no text"), ([" ", ""], "holds no text"), ([None, None], "2 of 2 records cannot be read")],
    ids=["no row", "blank rows", "corrupt rows"],
)
def test_a_dataset_without_text_is_refused(hub: Hub, read, texts, says):
    hub.write("a/b", {"train.parquet": parquet_of(pyarrow.array(texts, pyarrow.string()))})
    with pytest.raises(DataUnavailable, match=f"source 'web': .*{says}"):
        read(Dataset("a/b"))
    if texts:
        with pytest.raises(DataUnavailable, match=r"hf://a/b/train@.* holds no"):
            read(Dataset("a/b"), share=1)


def test_a_file_that_is_broken_is_told(hub: Hub, read):
    hub.write("a/b", {"train.parquet": parquet_of(["w2"])[:-20]})
    with pytest.raises(DataUnavailable, match=r"hf://a/b/train@.* cannot be read"):
        read(Dataset("a/b"))


@pytest.mark.parametrize("what", ["gated", "private"])
def test_what_is_kept_back_asks_for_a_token(hub: Hub, read, monkeypatch, what):
    hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w2"})})
    getattr(hub, what).add("a/b")
    with pytest.raises(DataUnavailable, match=f"{what}.* HF_TOKEN"):
        read(Dataset("a/b"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read(Dataset("a/b")) == [2, EOS]


def test_a_run_keeps_to_the_commit_that_it_began_with(hub: Hub, read):
    commit = hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w2"})})
    began = pinned("web", Dataset("a/b"))
    assert began.revision == commit
    later = hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w3"})})
    assert pinned("web", Dataset("a/b")).revision == later
    assert read(began) == [2, EOS]
    assert read(Dataset("a/b")) == [3, EOS]


@pytest.fixture
def downloaded(hub: Hub) -> str:
    """A dataset that the cache has whole; its commit."""
    commit = hub.write("a/b", {"train.jsonl": jsonl_of({"text": "w2"}, {"text": "w3"})})
    datasets.load_dataset("a/b")
    return commit


def go_offline(monkeypatch, how):
    if how.startswith("HF_"):
        # What the libraries make of these variables as they are imported.
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "out of reach"])
def test_without_the_hub_the_cache_is_read(hub: Hub, downloaded, read, monkeypatch, how):
    go_offline(monkeypatch, how)
    asked = len(hub.requests)
    dataset = pinned("web", Dataset("a/b"))
    assert dataset.revision == downloaded
    assert read(dataset) == [2, EOS, 3, EOS]
    assert read(Dataset("a/b"), enough=2) == [2, EOS]
    assert len(hub.requests) == asked


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "out of reach"])
def test_without_the_hub_and_not_in_the_cache_it_says_so(downloaded, read, monkeypatch, how):
    go_offline(monkeypatch, how)
    assert downloaded
    with pytest.raises(
        DataUnavailable, match=r"a/c.* is out of reach, and it is not in the cache.*way to"
    ) as one:
        read(Dataset("a/c"))
    with pytest.raises(
        DataUnavailable, match=f"cannot be reached .*the cache has commit {downloaded}"
    ) as two:
        read(Dataset("a/b", revision="v9"))
    assert one.value.transient is two.value.transient is (how == "out of reach")


def test_a_label_is_the_name_of_its_class(hub: Hub, tmp_path, tokenizer):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["w2", "w3"] * 10, "label": [0, 1] * 10}, features=features)
    file = io.BytesIO()
    parquet.write_table(rows.data.table, file)
    hub.write("a/b", {"train.parquet": file.getvalue()})
    corpus = open_labelled(
        [text_of(Dataset("a/b"))],
        tokenizer,
        labels=("good", "bad"),
        sequence_length=4,
        held_out=Fraction(1, 10),
        seed=0,
        cache=tmp_path / "tokens",
    )
    rows = corpus.held_out()
    assert rows.classes is not None
    assert {*zip(rows.input_ids[:, 0].tolist(), rows.classes.tolist(), strict=True)} == {(2, 1), (3, 0)}
