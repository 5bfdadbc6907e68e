"""Rows shared out: each once, as many for every rank, and what fills up counts for nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_trainer.batch import IGNORED, Rows, SequenceId


@given(st.integers(1, 9), st.integers(1, 5))
def test_each_row_is_one_ranks_and_every_rank_has_as_many(count, world):
    numbers = torch.arange(count)
    ids = tuple(SequenceId(0, 0, number) for number in range(count))
    rows = Rows(
        input_ids=numbers[:, None].expand(-1, 3),
        labels=numbers[:, None].expand(-1, 3),
        attention_mask=torch.ones(count, 3, dtype=torch.int64),
        classes=numbers,
        ids=ids,
    )
    shares = [rows.share(rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-count // world)}
    assert all(
        len(part) == len(share) for share in shares for part in (share.labels, share.classes, share.ids)
    )
    counted = [int(label) for share in shares for label in share.classes if label != IGNORED]
    assert sorted(counted) == list(range(count))
    for share in shares:
        nothing = share.classes == IGNORED
        assert torch.equal((share.labels == IGNORED).all(dim=1), nothing)
        assert torch.equal(share.labels[~nothing], share.input_ids[~nothing])
        assert bool(share.tokens.all())  # a row of padding alone would be no text


def test_packed_documents_are_shared_with_their_places():
    rows = Rows.of_documents(torch.tensor([[1, 5, 2], [3, 4, 5], [1, 1, 5]]), end=5)
    last = rows.share(1, 2)
    assert last.position_ids.tolist() == [rows.position_ids[1].tolist(), rows.position_ids[0].tolist()]
    assert last.labels[1].tolist() == [IGNORED] * 3
    assert last.attention_mask is None
