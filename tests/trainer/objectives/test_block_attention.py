"""blockAttention: attention relations of each block by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import SmallModel, assert_same, batch_of, few, rows_of, some_rows
from bitnet_trainer.answer import Capture, Projections
from bitnet_trainer.errors import BadInput
from bitnet_trainer.objectives.attention_relations import AttentionRelationsObjective, attention_relations
from bitnet_trainer.objectives.block_attention import BlockAttentionObjective, block_attention


def captured(model, rows, layer=3):
    return model(rows.input_ids, None, Capture(projections=frozenset({layer}))).projections[layer]


@few
@given(some_rows(), st.integers(1, 10))
def test_it_is_the_sum_over_blocks_cut_by_hand(rows, size):
    student, teacher = SmallModel(0), SmallModel(1, widths=(12, 8, 20))
    own, goal = captured(student, rows), captured(teacher, rows)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, rows.input_ids.shape[1], size):
        block = slice(start, start + size)
        cut = (Projections(*(x[:, block] for x in side)) for side in (own, goal))
        total = total + attention_relations(*cut, rows.tokens[:, block], 2).total
    loss = block_attention(own, goal, rows.tokens, 2, size)
    assert_same(loss.total, total, student)
    assert loss.tokens == rows.tokens.sum()


@few
@given(some_rows(), st.integers(9, 40))
def test_one_block_is_attention_relations_to_the_last_bit(rows, size):
    own, goal = captured(SmallModel(0), rows), captured(SmallModel(1), rows)
    whole = attention_relations(own, goal, rows.tokens, 2)
    assert torch.equal(block_attention(own, goal, rows.tokens, 2, size).total, whole.total)


def test_nothing_passes_between_blocks():
    rows = rows_of(8)
    own, goal = captured(SmallModel(0), rows), captured(SmallModel(1), rows)
    own = Projections(*(x.detach().requires_grad_() for x in own))
    only_first = rows.tokens.clone()
    only_first[:, 4:] = False
    loss = block_attention(own, goal, rows.tokens, 2, 4).total
    first = block_attention(own, goal, only_first, 2, 4).total
    for both, alone in zip(torch.autograd.grad(loss, own), torch.autograd.grad(first, own), strict=True):
        torch.testing.assert_close(both[:, :4], alone[:, :4])
        assert not alone[:, 4:].any()


def test_the_objective_is_that_of_the_layer_and_block():
    student, teacher, rows = SmallModel(0), SmallModel(1), rows_of(9, 4)
    objective = BlockAttentionObjective(layer=3, relation_heads=4, key_heads=2, block_size=4)
    loss = objective(batch_of(student, rows, objective, teacher))
    expected = block_attention(captured(student, rows), captured(teacher, rows), rows.tokens, 4, 4)
    assert_same(loss.total, expected.total, student)
    assert loss.tokens == objective.count(rows) == 13
    whole = AttentionRelationsObjective(layer=3, relation_heads=4, key_heads=2)
    assert loss.total != whole(batch_of(student, rows, whole, teacher)).total


def test_its_errors_say_its_own_name():
    with pytest.raises(BadInput, match="blockAttention names layer 9"):
        BlockAttentionObjective(layer=9, relation_heads=None, key_heads=2, block_size=4).capture(4)
