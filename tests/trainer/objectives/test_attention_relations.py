"""attentionRelations: its twin, padding, models of other shapes, and what cannot be split."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from answering import SmallModel, assert_same, batch_of, few, gradients_of, rows_of, some_rows
from bitnet_trainer.answer import Capture, Projections
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.objectives.attention_relations import AttentionRelationsObjective, attention_relations

PLAIN = AttentionRelationsObjective(layer=None, relation_heads=None, key_heads=2)
WIDE = (12, 8, 20)


def relation(vectors, place, heads, head):
    """How a place of (n, width) relates to all of them: (n,) probabilities."""
    size = vectors.shape[-1] // heads
    own = vectors[:, head * size : (head + 1) * size]
    return ((own @ own[place]) / math.sqrt(size)).softmax(-1)


def twin(student, teacher, tokens, heads):
    """Row by row, without the padding; place by place, head by head."""
    total = torch.zeros((), dtype=torch.float64)
    for own, goal in zip(student, teacher, strict=True):
        for row, length in enumerate(tokens.sum(1).tolist()):
            for place in range(length):
                for head in range(heads):
                    p = relation(goal[row, :length].detach(), place, heads, head)
                    q = relation(own[row, :length], place, heads, head)
                    total = total + (p * (p / q).log()).sum() / heads
    return total


def projections_of(model, rows, layer):
    return model(rows.input_ids, None, Capture(projections=frozenset({layer}))).projections[layer]


@few
@given(some_rows(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 200, 10**6]))
def test_it_is_its_twin_whatever_the_chunks(rows, heads, chunk):
    student, teacher = SmallModel(0), SmallModel(1, width=6, widths=WIDE)
    own, goal = (projections_of(model, rows, 1) for model in (student, teacher))
    loss = attention_relations(own, goal, rows.tokens, heads, chunk)
    assert_same(loss.total, twin(own, goal, rows.tokens, heads), student)
    assert loss.tokens == rows.tokens.sum()
    assert not any(gradient.any() for gradient in gradients_of(loss.total, teacher).values())


@pytest.mark.parametrize(("layer", "own", "goal"), [(None, 3, 5), (0, 0, 1), (1, 1, 2), (2, 2, 4), (3, 3, 5)])
def test_the_objective_takes_the_layer_at_the_same_depth(layer, own, goal):
    """Of four layers here, and six there."""
    student, teacher, rows = SmallModel(0), SmallModel(1, layers=6), rows_of(7, 4)
    objective = AttentionRelationsObjective(layer, 4, key_heads=2)
    loss = objective(batch_of(student, rows, objective, teacher))
    expected = twin(projections_of(student, rows, own), projections_of(teacher, rows, goal), rows.tokens, 4)
    assert_same(loss.total, expected, student)
    assert loss.tokens == objective.count(rows) == 11


@pytest.mark.parametrize(("layers", "layer"), [(1, 0), (2, 1), (4, 3), (28, 21), (30, 22)])
def test_without_a_layer_it_is_the_one_three_quarters_up(layers, layer):
    assert PLAIN.capture(layers) == Capture(projections=frozenset({layer}))


def test_without_relation_heads_there_are_as_many_as_key_heads():
    student, teacher, rows = SmallModel(0), SmallModel(1), rows_of(7, 4)
    stated = AttentionRelationsObjective(layer=None, relation_heads=2, key_heads=4)
    by_key_heads = PLAIN(batch_of(student, rows, PLAIN, teacher)).total
    assert torch.equal(by_key_heads, stated(batch_of(student, rows, stated, teacher)).total)
    four = AttentionRelationsObjective(layer=None, relation_heads=4, key_heads=2)
    assert by_key_heads != four(batch_of(student, rows, four, teacher)).total


@pytest.mark.parametrize("shift", [0, 1])
def test_a_student_that_is_its_teacher_has_no_loss_and_one_that_is_a_place_behind_has(shift):
    model, rows = SmallModel(0), rows_of(9, 9)
    goal = projections_of(model, rows, 2)
    behind = Projections(*(projection.roll(shift, dims=1) for projection in goal))
    loss = attention_relations(behind, goal, rows.tokens, 2)
    largest = max(gradient.abs().max() for gradient in gradients_of(loss.total, model).values())
    assert (abs(loss.total) < 1e-12) == (largest < 1e-12) == (shift == 0)


@pytest.mark.parametrize("values", [1.0, 1e4])
def test_padding_is_neither_asked_nor_counted(values):
    torch.manual_seed(0)
    tokens = rows_of(5, 0, 3).tokens
    own = Projections(*(torch.randn(3, 5, width, requires_grad=True) for width in (8, 4, 4)))
    goal = Projections(*(torch.randn(3, 5, width) for width in WIDE))
    padded = [
        attention_relations(
            Projections(*(torch.where(tokens[..., None], x, filling) for x in own)), goal, tokens, 2
        )
        for filling in (0.0, values)
    ]
    torch.testing.assert_close(*(loss.total for loss in padded))
    assert {int(loss.tokens) for loss in padded} == {8}
    for gradient in torch.autograd.grad(padded[1].total, own):
        assert torch.isfinite(gradient).all()
        assert not gradient[~tokens].any()
        assert gradient[0].any()
    assert padded[1].tokens == 8


def test_rows_of_padding_alone_give_zero_and_no_nan():
    tokens = torch.zeros(2, 4, dtype=torch.bool)
    own = Projections(*(torch.randn(2, 4, 4, requires_grad=True) for _ in range(3)))
    loss = attention_relations(own, own, tokens, 2)
    assert (loss.total.item(), loss.tokens.item(), loss.mean.item()) == (0.0, 0, 0.0)
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.total, own))


def test_bfloat16_is_multiplied_and_summed_in_float32_even_under_autocast():
    torch.manual_seed(0)
    tokens = torch.ones(2, 9, dtype=torch.bool)
    own, goal = (Projections(*(4 * torch.randn(2, 9, 8).bfloat16() for _ in range(3))) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_relations(own, goal, tokens, 2).total
    longer = (Projections(*(x.double() for x in side)) for side in (own, goal))
    torch.testing.assert_close(found, attention_relations(*longer, tokens, 2).total.float())


def test_widths_that_cannot_be_split_are_named_with_a_number_that_can_split_them():
    objective = AttentionRelationsObjective(layer=1, relation_heads=8, key_heads=2)
    batch = batch_of(SmallModel(0), rows_of(4), objective, SmallModel(1, layers=8, widths=WIDE))
    with pytest.raises(BadInput) as caught:
        objective(batch)
    assert str(caught.value) == (
        "attentionRelations cannot split queries, keys and values into 8 relation heads each: they are "
        "[8, 4, 4] wide in the student's layer 1 and [12, 8, 20] in the teacher's 3; write a number that "
        "divides all widths as `relationHeads`, such as 4"
    )


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(BadInput, match=r"attentionRelations names layer 4.* 0 to 3; write one of these"):
        AttentionRelationsObjective(layer=4, relation_heads=None, key_heads=2).capture(4)


def test_without_a_teacher_it_is_an_error():
    with pytest.raises(TeacherUnavailable, match=r"no teacher is loaded.*spec\.teacher"):
        PLAIN(batch_of(SmallModel(0), rows_of(4), PLAIN))
