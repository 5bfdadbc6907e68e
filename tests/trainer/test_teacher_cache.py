"""The teacher's kept logits: replayed bit by bit, and never at the cost of training."""

import errno
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.objectives.top_k import TopK
from bitnet_trainer.teacher_cache import LogitsCache, Question, fingerprint

QUESTION = Question(teacher="t", device="cpu", k=3, temperature=2.0)
S, K = 8, 3


def rows(*indices: int, epoch: int = 0, lengths: tuple[int, ...] | None = None) -> Rows:
    tokens = torch.arange(len(indices) * S).reshape(-1, S)
    mask = None
    if lengths is not None:
        mask = (torch.arange(S) < torch.tensor(lengths)[:, None]).long()
    return Rows(tokens, tokens, mask, ids=tuple(SequenceId(0, epoch, index) for index in indices))


def computed(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> TopK:
    draw = torch.Generator().manual_seed(seed)
    return TopK(
        torch.randn(count, S, K, generator=draw).to(dtype),
        torch.randint(0, 150_000, (count, S, K), generator=draw),
        torch.randn(count, S, generator=draw),
    )


def equal(one: TopK, other: TopK) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def never() -> TopK:
    raise AssertionError("the teacher is asked again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_said_is_replayed_bit_by_bit_in_any_order_and_epoch(tmp_path, dtype):
    said = computed(4, dtype=dtype)
    assert equal(LogitsCache(tmp_path, "data").top_k(rows(0, 1, 2, 3), QUESTION, lambda: said), said)
    # As a process that began anew would, with other micro batches of a later epoch.
    cache = LogitsCache(tmp_path, "data")
    for picked in ([2, 0], [1], [3, 1, 2]):
        replayed = cache.top_k(rows(*picked, epoch=1), QUESTION, never)
        assert equal(replayed, TopK(*(tensor[picked] for tensor in said)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_whatever_was_returned_first_is_returned_for_ever(tmp_path_factory, batches):
    """Also to a micro batch of which only some rows are kept: a step done again after a crash is the same."""
    folder = tmp_path_factory.mktemp("cache")
    first = [
        LogitsCache(folder, "data").top_k(
            rows(*batch), QUESTION, lambda n=number, b=batch: computed(len(b), n)
        )
        for number, batch in enumerate(batches)
    ]
    for batch, said in zip(batches, first, strict=True):
        assert equal(LogitsCache(folder, "data").top_k(rows(*batch), QUESTION, never), said)


def test_padding_is_not_kept_and_a_row_may_be_padded_otherwise_the_next_time(tmp_path):
    said = computed(2)
    cache = LogitsCache(tmp_path, "data")
    first = cache.top_k(rows(0, 1, lengths=(8, 5)), QUESTION, lambda: said)
    assert equal(TopK(*(tensor[:1] for tensor in first)), TopK(*(tensor[:1] for tensor in said)))
    short = rows(1, lengths=(5,))
    short = replace(short, input_ids=short.input_ids[:, :6], attention_mask=short.attention_mask[:, :6])
    for one in (TopK(*(tensor[1:, :6] for tensor in first)), cache.top_k(short, QUESTION, never)):
        assert equal(TopK(*(tensor[0, :5] for tensor in one)), TopK(*(tensor[1, :5] for tensor in said)))
        assert all((tensor[0, 5:] == tensor[0, 4]).all() for tensor in one)


def test_a_row_of_padding_alone_is_kept_too(tmp_path):
    cache, said = LogitsCache(tmp_path, "data"), computed(2)
    first = cache.top_k(rows(0, 1, lengths=(3, 0)), QUESTION, lambda: said)
    assert equal(cache.top_k(rows(0, 1, lengths=(3, 0)), QUESTION, never), first)
    assert equal(TopK(*(tensor[0, :3] for tensor in first)), TopK(*(tensor[0, :3] for tensor in said)))


@pytest.mark.parametrize(
    "other",
    [
        replace(QUESTION, teacher="other"),
        replace(QUESTION, device="cuda"),
        replace(QUESTION, k=4),
        replace(QUESTION, temperature=1.0),
    ],
)
def test_another_question_is_asked_anew(tmp_path, other):
    cache = LogitsCache(tmp_path, "data")
    cache.top_k(rows(0), QUESTION, lambda: computed(1))
    with pytest.raises(AssertionError, match="asked again"):
        cache.top_k(rows(0), other, never)


def test_other_data_another_torch_and_other_sequences_are_asked_anew(tmp_path, monkeypatch):
    cache = LogitsCache(tmp_path, "data")
    cache.top_k(rows(0), QUESTION, lambda: computed(1))
    other_source = replace(rows(0), ids=(SequenceId(1, 0, 0),))
    for one, asked in ((LogitsCache(tmp_path, "other"), rows(0)), (cache, rows(1)), (cache, other_source)):
        with pytest.raises(AssertionError, match="asked again"):
            one.top_k(asked, QUESTION, never)
    monkeypatch.setattr(torch, "__version__", "99")
    with pytest.raises(AssertionError, match="asked again"):
        cache.top_k(rows(0), QUESTION, never)


def the_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.safetensors")
    return file


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def zeroed(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def foreign(file: Path) -> None:
    save_file({"x": torch.zeros(1)}, file)


def shorter(file: Path) -> None:
    """A sound file of fewer tokens."""
    folder = file.parents[3]
    file.unlink()
    LogitsCache(folder, "data").top_k(rows(0, lengths=(5,)), QUESTION, lambda: computed(1, seed=1))


@pytest.mark.parametrize("damage", [cut, zeroed, emptied, foreign, shorter])
def test_a_damaged_file_is_said_once_and_replaced(tmp_path, caplog, damage):
    said = computed(1)
    cache = LogitsCache(tmp_path, "data")
    cache.top_k(rows(0), QUESTION, lambda: said)
    for _ in range(2):
        damage(the_file(tmp_path))
        assert equal(cache.top_k(rows(0), QUESTION, lambda: said), said)
        assert equal(cache.top_k(rows(0), QUESTION, never), said)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(the_file(tmp_path)) in record.message
    assert "is damaged; the teacher is asked again and the file replaced" in record.message


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, caplog, monkeypatch):
    cache = LogitsCache(tmp_path, "data")
    kept = computed(1)
    cache.top_k(rows(0), QUESTION, lambda: kept)
    tries = []

    def full(path: Path, content: bytes) -> int:
        tries.append(path)
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    said = computed(3)
    assert equal(cache.top_k(rows(1, 2, 3), QUESTION, lambda: said), said)
    assert equal(cache.top_k(rows(1, 2, 3), QUESTION, lambda: said), said)
    assert len(tries) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No space left on device" in record.message
    assert "NO LONGER KEPT" in record.message
    assert "Training goes on" in record.message
    # What was kept before still counts, and nothing is left half written.
    assert equal(cache.top_k(rows(0), QUESTION, never), kept)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [the_file(tmp_path)]


def test_a_folder_that_cannot_be_made_is_no_end_of_training_either(tmp_path, caplog):
    (tmp_path / "file").touch()
    said = computed(1)
    assert equal(LogitsCache(tmp_path / "file", "data").top_k(rows(0), QUESTION, lambda: said), said)
    assert "NO LONGER KEPT" in caplog.text


def test_ranks_may_write_at_once(tmp_path):
    """Each its own rows and all of them one row in common."""
    caches = [LogitsCache(tmp_path, "data") for _ in range(8)]
    said = computed(2)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda rank: caches[rank].top_k(rows(99, rank), QUESTION, lambda: said), range(8)))
    replayed = LogitsCache(tmp_path, "data").top_k(rows(99, *range(8)), QUESTION, never)
    assert equal(replayed, TopK(*(tensor[[0] + [1] * 8] for tensor in said)))
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_holds_no_more_than_a_thousand_sequences(tmp_path):
    LogitsCache(tmp_path, "data").top_k(rows(999, 1000, 2001), QUESTION, lambda: computed(3))
    (folder,) = tmp_path.iterdir()
    found = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    assert found == ["0/0/999.safetensors", "0/1/1000.safetensors", "0/2/2001.safetensors"]


def test_a_fingerprint_tells_weights_their_types_and_descriptions_apart(make_model):
    models = [
        (make_model(), "a"),
        (make_model(), "b"),
        (make_model(seed=1), "a"),
        (make_model().bfloat16(), "a"),
    ]
    assert len({fingerprint(model, description) for model, description in models}) == 4
    assert fingerprint(make_model(), "a") == fingerprint(make_model(), "a")
